"""The build backend of `pip install .`: maturin, in an environment where a Rust that works is found (see `rust`)."""

from __future__ import annotations

import os

import maturin
import rust

_environment, _ = rust.usable(os.environ)
os.environ.clear()
os.environ.update(_environment)

build_editable = maturin.build_editable
build_sdist = maturin.build_sdist
build_wheel = maturin.build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
