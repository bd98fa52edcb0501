"""``fullyconv info``."""

from __future__ import annotations

from fullyconv import __version__


def info() -> None:
    """Show versions, devices and optional parts of this installation."""
    import importlib.metadata
    import platform

    from fullyconv import native
    from fullyconv.devices import describe_devices

    print(f"fullyconv {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "torchvision", "timm", "lightning-fabric", "pillow", "numpy"):
        print(f"  {package} {importlib.metadata.version(package)}")
    for line in (*describe_devices(), native.describe()):
        print(f"  {line}")
    for package, use in (("tensorboard", "training curves in TensorBoard"),):
        try:
            print(f"  {package} {importlib.metadata.version(package)}: {use}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package}: not installed; pip install 'fullyconv[{package}]' for {use}")
