#!/usr/bin/env python3
"""Install Detectron2 on a machine that reaches only the Python package index.

Detectron2 has no release there (and its name is free, so nobody may trust a package called that).
The wheel ``labgym==3.1.2`` carries Detectron2 of January 2024 as a subpackage whose only edit is
the import prefix. This tool takes that subpackage, changes the prefix back, proves that every file
is byte for byte that of the upstream commit, writes an ordinary wheel and installs it with pip into
the interpreter that runs the tool. Nothing else of LabGym is kept. The compiled operators
(``detectron2._C``) are not part of it; densedet needs none of them.

An importable Detectron2 is left alone. Needs the standard library and pip only.

    python tools/install_detectron2.py                # download, prove, install
    python tools/install_detectron2.py --wheel FILE   # take a local labgym wheel
    python tools/install_detectron2.py --out DIR      # write the wheel, install nothing
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

SOURCE = "labgym==3.1.2"
SOURCE_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
SOURCE_FOLDER = "LabGym/detectron2/"
SOURCE_PREFIX = b"LabGym.detectron2"
COMMIT = "864913f0e57e87a75c8cc0c7d79ecbd774fc669b"
TREE_SHA256 = "1005559a6127b9afc02bd35d52e7b53503e28feedc3ec0f86af0e54902226feb"
VERSION = f"0.6+g{COMMIT[:8]}"
WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"
REQUIRES = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.2",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
    "setuptools<82",
)
ORIGIN = f"""Detectron2 at commit {COMMIT}
(https://github.com/facebookresearch/detectron2), Apache License 2.0,
Copyright Facebook, Inc. and its affiliates.

Taken from the folder {SOURCE_FOLDER} of the wheel {SOURCE} (sha256
{SOURCE_SHA256}),
with the import prefix {SOURCE_PREFIX.decode()} changed back to detectron2. The sha256 of all lines
"path git-blob-id" in order of the path is
{TREE_SHA256}:
every file is byte for byte that of the commit. Compiled operators (detectron2._C) are not included.
"""
LICENSE_FILE = Path(__file__).resolve().parent.parent / "LICENSE"


class InstallError(Exception):
    """The installation cannot go on; the message is one line and says what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InstallError(message)


def git_blob_id(content: bytes) -> str:
    """Return the name that git gives to a file with this content (hexadecimal sha1)."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def tree_digest(files: Mapping[str, bytes]) -> str:
    """Return the sha256 of the lines ``path git-blob-id`` of all files, sorted by path."""
    lines = (f"{path} {git_blob_id(files[path])}\n" for path in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_tree(wheel: Path, wheel_sha256: str, expected_tree: str) -> dict[str, bytes]:
    """Read Detectron2's files from a LabGym wheel, with the import prefix changed back.

    Args:
        wheel: The LabGym wheel.
        wheel_sha256: Its expected digest.
        expected_tree: The expected :func:`tree_digest` of the result.

    Returns:
        Contents by path below ``detectron2/``.

    Raises:
        InstallError: The wheel cannot be read, or a digest differs.
    """
    try:
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read {wheel}: {error.strerror}") from error
    if found != wheel_sha256:
        raise InstallError(f"{wheel} has sha256 {found}, expected {wheel_sha256} ({SOURCE})")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(SOURCE_FOLDER) and n[-1] != "/"]
            files = {
                name.removeprefix(SOURCE_FOLDER): archive.read(name).replace(
                    SOURCE_PREFIX, b"detectron2"
                )
                for name in names
            }
    except zipfile.BadZipFile as error:
        raise InstallError(f"{wheel} is not a wheel: {error}") from error
    digest = tree_digest(files)
    if digest != expected_tree:
        raise InstallError(
            f"the {len(files)} files in {SOURCE_FOLDER} of {wheel} are not Detectron2 at {COMMIT}: "
            f"digest {digest}, expected {expected_tree}"
        )
    return files


def wheel_members(files: Mapping[str, bytes], licence: bytes) -> dict[str, bytes]:
    """Return the contents of the wheel by path, ``RECORD`` last."""
    info = f"detectron2-{VERSION}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2, the commit of January 2024, without compiled operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "License-File: ORIGIN.txt",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
        "",
        ORIGIN,
    ]
    wheel = "Wheel-Version: 1.0\nGenerator: densedet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {f"detectron2/{path}": files[path] for path in sorted(files)}
    members[f"{info}/LICENSE"] = licence
    members[f"{info}/ORIGIN.txt"] = ORIGIN.encode()
    members[f"{info}/METADATA"] = "\n".join(metadata).encode()
    members[f"{info}/WHEEL"] = wheel.encode()
    members[f"{info}/top_level.txt"] = b"detectron2\n"
    record = [f"{path},{_record_hash(content)},{len(content)}" for path, content in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    return members


def write_wheel(folder: Path, members: Mapping[str, bytes]) -> Path:
    """Write the wheel into ``folder``, whole or not at all; the same members give the same bytes.

    Raises:
        InstallError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
    except OSError as error:
        raise InstallError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for path, content in members.items():
                # Fixed date and no compression: the bytes depend on neither clock nor zlib.
                entry = zipfile.ZipInfo(path, date_time=(2024, 1, 1, 0, 0, 0))
                entry.external_attr = 0o100644 << 16
                entry.create_system = 3
                archive.writestr(entry, content)
        os.chmod(name, 0o644)
        os.replace(name, folder / WHEEL_NAME)
    except OSError as error:
        raise InstallError(f"cannot write {folder / WHEEL_NAME}: {error.strerror}") from error
    finally:
        Path(name).unlink(missing_ok=True)
    return folder / WHEEL_NAME


def download(folder: Path) -> Path:
    """Download the LabGym wheel with pip, which checks its digest.

    Raises:
        InstallError: pip failed, for instance without network.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SOURCE} --hash=sha256:{SOURCE_SHA256}\n", encoding="utf-8")
    # fmt: off
    _pip(
        f"cannot download {SOURCE}; without network give a local copy with --wheel",
        "download", "--no-deps", "--ignore-requires-python", "--only-binary=:all:",
        "--require-hashes", "--retries", "2", "-d", str(folder), "-r", str(requirements),
    )
    # fmt: on
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InstallError(f"pip download {SOURCE} left {len(wheels)} wheels, expected one")
    return wheels[0]


def installed_detectron2() -> str | None:
    """Return where an importable Detectron2 is, or None if nothing of that name is installed.

    Raises:
        InstallError: A package called ``detectron2`` is there, but it is not Detectron2 or it
            cannot be imported; it is not touched.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None:
        return None
    folder = Path(next(iter(spec.submodule_search_locations or []), str(spec.origin)))
    if not (folder / "modeling" / "__init__.py").is_file():
        raise InstallError(
            f"the package detectron2 in {folder} is not Detectron2 (no detectron2.modeling); "
            f"remove it first: {sys.executable} -m pip uninstall detectron2"
        )
    code = "import detectron2, detectron2.structures; print(detectron2.__version__)"
    check = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if check.returncode:
        raise InstallError(
            f"the Detectron2 in {folder} cannot be imported ({_last_line(check.stderr)}); "
            f"mend that, or remove it first: {sys.executable} -m pip uninstall detectron2"
        )
    return f"{check.stdout.strip()} in {folder}"


def main(argv: list[str] | None = None) -> int:
    """Install Detectron2, or write its wheel; see the description of the module."""
    parser = _Parser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit code 0: installed, already there, or written. 2: failed, nothing changed.",
    )
    parser.add_argument("--wheel", type=Path, help=f"a local wheel of {SOURCE}, not downloaded")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the wheel, do not install")
    parser.add_argument("--no-deps", action="store_true", help="do not install its requirements")
    args = parser.parse_args(argv)
    if args.out is None and (present := installed_detectron2()):
        print(f"Detectron2 {present} is importable and is left alone")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        source = args.wheel or download(Path(scratch))
        files = read_tree(source, SOURCE_SHA256, TREE_SHA256)
        members = wheel_members(files, _licence())
        wheel = write_wheel(args.out or Path(scratch) / "wheel", members)
        print(f"{len(files)} files proved equal to Detectron2 at commit {COMMIT}")
        if args.out is not None:
            print(wheel)
            return 0
        options = ["--no-deps"] if args.no_deps else []
        _pip(f"cannot install {WHEEL_NAME}", "install", *options, str(wheel))
    print(f"installed detectron2 {VERSION}")
    return 0


def _licence() -> bytes:
    try:
        return LICENSE_FILE.read_bytes()
    except OSError as error:
        raise InstallError(
            f"cannot read {LICENSE_FILE} (Apache-2.0, goes into the wheel): {error.strerror}; "
            "run the tool from a complete checkout"
        ) from error


def _record_hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _pip(failure: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InstallError(f"{failure} (pip: {_last_line(done.stderr)})")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no message"])[-1]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InstallError as problem:
        sys.stderr.write(f"error: {' '.join(str(problem).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
