"""The recipe's section `data.image` for pictures in files: where they are, and how each becomes pixels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field

from headrace.recipe.section import Section
from headrace.runtime.images import Fit, Interpolation, PictureFormat

IMAGE, PATH, WIDTH, HEIGHT = "image", "path", "width", "height"
"""Columns of a stored table of pictures: the bytes of the file, its path in the source, its size in pixels."""
STORED = (PATH, WIDTH, HEIGHT, IMAGE)
Side = Annotated[int, Field(ge=1, le=4096)]


class PictureConfig(Section):
    """Pictures in files (JPEG, PNG or WebP, grey or colour, of any and mixed sizes), and how each becomes pixels, the same in
    training and in the service. `data.source` is then a folder or an archive (zip, tar) with a folder of pictures for each
    class, a pattern such as `photos/*/*.jpg`, or a table (CSV, JSON lines, JSON) of paths and labels."""

    size: tuple[Side, Side]
    """Height and width that every picture is brought to."""
    channels: Literal[1, 3] = 3
    """1: grey; 3: red, green, blue."""
    fit: Fit = "resize"
    """How a picture of another shape is fitted: `resize` stretches it, `crop` cuts out its middle, `pad` adds a frame."""
    interpolation: Interpolation = "bilinear"
    """How pixels are computed from those of the file; all but `nearest` take the mean of what they cover."""
    background: int = Field(default=0, ge=0, le=255)
    """Grey value behind transparent pixels and in the frame of `pad`: 0 is black, 255 white."""
    path: str | None = None
    """For a table: the column with the paths of the pictures. Without it the folder of a picture is its label."""
    files: str | list[str] | dict[str, Any] | None = None
    """For a table: where its pictures are, as a folder, an archive or a pattern, one for each file of `data.source` in the same
    form. By default the folder or archive of the table."""
    sha256: str | list[str] | dict[str, Any] | None = None
    """sha256 of `files`, in the same form. Of a pattern that of what `sha256sum` prints for all files."""
    broken: Literal["drop", "refuse"] = "drop"
    """What happens with files that are damaged or too large: they are dropped and reported with their paths, or the whole
    source is refused."""
    cache: ByteSize | None = Field(default=None, ge=0)
    """Largest size of the decoded pixels on disk in training, for example `20GB`; of a larger set each batch is decoded again
    by one thread per core. By default half of the free disk."""

    @property
    def format(self) -> PictureFormat:
        """How a file becomes pixels."""
        height, width = self.size
        return PictureFormat(
            height=height,
            width=width,
            channels=self.channels,
            fit=self.fit,
            interpolation=self.interpolation,
            background=self.background,
        )
