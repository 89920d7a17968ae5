"""From a model's files to something that serves: a bento, its command, its image."""

from headrace.serving.packaging.bento import Bento, find_bento, package
from headrace.serving.packaging.command import serve_command
from headrace.serving.packaging.image import Image, build_image
from headrace.serving.packaging.wheelhouse import make_wheelhouse

__all__ = ["Bento", "Image", "build_image", "find_bento", "make_wheelhouse", "package", "serve_command"]
