"""promptsource 0.2.3's prompts, from the package index.

`fetch` takes the source package of the release from the package index that pip is set up with, checks its
SHA-256, and unpacks its templates and its licence (Apache-2.0) into the cache folder, and nothing else of it. The
release has no wheel, and pip insists on asking a source package for its metadata, which would run its `setup.py`
(and needs an old setuptools). So pip is pointed at a build backend of ours, which answers with the name and version
alone: no line of the package is ever run, no build tool is needed, and any Python with pip will do.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from t0jax.config import UserError
from t0jax.data.templates import RELEASE, release_dir

SHA256 = "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5"
"""Of promptsource-0.2.3.tar.gz."""

BACKEND = """
class __legacy__:
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        import pathlib
        name = "promptsource-0.2.3.dist-info"
        pathlib.Path(folder, name).mkdir()
        text = "Metadata-Version: 2.1\\nName: promptsource\\nVersion: 0.2.3\\n"
        pathlib.Path(folder, name, "METADATA").write_text(text)
        return name
"""
"""Stands in for `setuptools.build_meta:__legacy__`, the backend of packages without a pyproject.toml (PEP 517)."""


class FetchError(UserError):
    """The release could not be had; the message says why and what else to do."""


def fetch() -> Path:
    """The folder of the fetched templates; downloads them if they are not there yet.

    Raises:
      FetchError: pip cannot get the release, or it is not the one that is known.
    """
    target = release_dir()
    if (target / "templates").is_dir():
        return target / "templates"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{RELEASE}-") as work:
        archive = download(Path(work))
        unpacked = Path(work, "unpacked")
        unpack(archive, unpacked)
        # Another process may have been first: a folder that is there is whole, for it came by rename.
        with contextlib.suppress(OSError):
            unpacked.rename(target)
    if not (target / "templates").is_dir():
        raise FetchError(
            f"{target} is in the way: it holds no templates; remove it and fetch again"
        )
    return target / "templates"


def download(folder: Path) -> Path:
    """The release's archive, below `folder`, checked; none of its code is run.

    Raises:
      FetchError: as `fetch`.
    """
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(BACKEND)
    requirement = folder / "requirements.txt"
    requirement.write_text(f"promptsource==0.2.3 --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-deps",
        "--no-binary",
        "promptsource",
        "--ignore-requires-python",
        "--require-hashes",
    ]
    command += [
        "--use-pep517",
        "--no-build-isolation",
        "--dest",
        str(folder),
        "-r",
        str(requirement),
    ]
    environment = os.environ | {"PYTHONPATH": str(backend.parent)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    archive = folder / f"{RELEASE}.tar.gz"
    if result.returncode or not archive.is_file():
        reason = result.stderr.strip()[-1500:] or f"exit code {result.returncode}"
        raise FetchError(
            f"pip could not download {RELEASE}: {reason}\nWhere there is no package index, unpack the folder"
            f" promptsource/templates of that release anywhere and set T0JAX_PROMPTS_DIR to it."
        )
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise FetchError(f"{archive.name} is not the known release: its SHA-256 is not {SHA256}")
    return archive


def unpack(archive: Path, target: Path) -> None:
    """Writes the release's templates and licence below `target`, and nothing else of it."""
    wanted = re.compile(
        rf"{re.escape(RELEASE)}/(?:promptsource/)?(LICENSE|templates/.*templates\.yaml)"
    )

    def place(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        found = wanted.fullmatch(member.name)
        if not found or not member.isfile():
            return None
        return tarfile.data_filter(member.replace(name=found[1]), folder)

    with tarfile.open(archive) as files:
        files.extractall(target, filter=place)
