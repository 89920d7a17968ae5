"""Packages a model version: a bento, the command that serves it, and a container image."""

from headrace.serving.packaging.bento import Bento, find_bento, model_folder, package, serve_command
from headrace.serving.packaging.image import Image, build_image
from headrace.serving.packaging.wheelhouse import make_wheelhouse

__all__ = ["Bento", "Image", "build_image", "find_bento", "make_wheelhouse", "model_folder", "package", "serve_command"]
