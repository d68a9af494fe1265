"""Every gap between versions of third parties, in one place, each with its reason.

:func:`apply` makes the mends; the tools call it, no package calls it at import. A mend is made only
where its gap exists, touches the narrowest name that closes it, and may be made again and again.
"""

import functools
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)


def apply() -> tuple[str, ...]:
    """Make the mends that this installation needs.

    Returns:
        The names of those made now; a second call returns an empty tuple. A third party that is not
        installed needs no mend.
    """
    hush_deprecations()
    mends = (lend_pkg_resources, mend_lvis, use_fast_coco_evaluation)
    made = tuple(mend.__name__ for mend in mends if mend())
    if made:
        logger.debug("compatibility mends made: %s", ", ".join(made))
    return made


def hush_deprecations() -> None:
    """Let Detectron2 use what torch calls deprecated, without a warning to users.

    Those are ``torch.jit.script``, ``torch.meshgrid`` without its new argument, and the argument
    ``broadcast_buffers`` of ``DistributedDataParallel``.
    """
    warnings.filterwarnings("ignore", r"`torch\.jit\.script`", FutureWarning)
    warnings.filterwarnings("ignore", r"torch\.meshgrid: ", UserWarning)
    warnings.filterwarnings("ignore", r"`broadcast_buffers` is deprecated", FutureWarning)


def defer_dynamo() -> bool:
    """Let a process that only predicts do without ``torch._dynamo``: 2 s of CPU to import.

    torchvision imports it for one function, timm for a decorator of some methods, Detectron2's
    convolutions to ask whether they are being compiled. The function and the decorator are
    exchanged, during the imports alone, for ones that ask torch when they are first called; the
    convolutions ask ``torch.compiler``, which answers the same without that import.

    Returns:
        Whether anything was exchanged: nothing is where ``torch._dynamo`` is there already.
    """
    needed = ("torch", "torchvision", "timm", "detectron2")
    if "torch._dynamo" in sys.modules or not all(map(_installed, needed)):
        return False
    compiler: Any = importlib.import_module("torch.compiler")
    name, disable = "torch._dynamo.utils", compiler.disable
    sys.modules[name], compiler.disable = _LentDynamo(name), _disable_when_called
    try:
        importlib.import_module("torchvision.ops")
        importlib.import_module("timm")
    finally:
        compiler.disable = disable
        if isinstance(sys.modules.get(name), _LentDynamo):
            del sys.modules[name]
    wrappers: Any = importlib.import_module("detectron2.layers.wrappers")
    wrappers.check_if_dynamo_compiling = compiler.is_compiling
    return True


def lend_pkg_resources() -> bool:
    """Import ``detectron2.model_zoo`` where ``pkg_resources`` is gone (setuptools >= 82).

    The January 2024 tree imports ``pkg_resources`` and uses one function of it. A module with that
    function is lent during the import and taken away again, so that nothing else in the process
    takes it for the real one.

    Returns:
        Whether the module was lent.
    """
    if "detectron2.model_zoo" in sys.modules or not _installed("detectron2"):
        return False
    if "pkg_resources" in sys.modules or _installed("pkg_resources"):
        return False
    lent: Any = ModuleType("pkg_resources", "Lent by densedet.compat.")
    lent.resource_filename = _resource_filename
    sys.modules["pkg_resources"] = lent
    try:
        importlib.import_module("detectron2.model_zoo")
    finally:
        del sys.modules["pkg_resources"]
    return True


def mend_lvis() -> bool:
    """Give ``lvis.eval`` a numpy with ``float``, which lvis 0.5.3 uses and numpy 1.24 removed.

    Only the name ``np`` inside ``lvis.eval`` changes; numpy itself is not touched.

    Returns:
        Whether the name was changed.
    """
    if not _installed("lvis"):
        return False
    module: Any = importlib.import_module("lvis.eval")
    if hasattr(module.np, "float"):
        return False
    module.np = _NumpyWithFloat("numpy")
    return True


def use_fast_coco_evaluation() -> bool:
    """Let Detectron2's ``COCOEvaluator`` use faster-coco-eval where ``detectron2._C`` is absent.

    Without the compiled operators Detectron2 falls back to pycocotools, which gives equal results
    (to 1e-16) and takes 2.4 to 4.3 times as long.

    Returns:
        Whether the evaluation was exchanged.
    """
    if not (_installed("detectron2") and _installed("faster_coco_eval")):
        return False
    module: Any = importlib.import_module("detectron2.evaluation.coco_evaluation")
    if module.COCOeval_opt is not module.COCOeval:
        return False
    from faster_coco_eval import COCOeval_faster

    module.COCOeval_opt = COCOeval_faster
    return True


def load_sem_seg(
    filename: str | os.PathLike[str], copy: bool = True, dtype: Any = None
) -> "np.ndarray":
    """Read a semantic label image; give it to ``SemSegEvaluator`` as ``sem_seg_loading_fn``.

    The January 2024 tree's own function calls ``np.array(..., copy=False)``, which raises with
    numpy 2, and the evaluator writes into the array.

    Args:
        filename: The label image (PNG).
        copy: For the signature of Detectron2's function; the array is always a fresh one.
        dtype: Of the result; by default the image's own.

    Returns:
        Writable labels ``[H, W]``.
    """
    import numpy as np
    from detectron2.utils.file_io import PathManager
    from PIL import Image

    with PathManager.open(os.fspath(filename), "rb") as stream, Image.open(stream) as image:
        return np.array(image, dtype=dtype)


def set_group_timeout(seconds: float, group: Any = None) -> None:
    """Set how long the next collective calls of a process group wait; torch before 2.15 hides it.

    Args:
        seconds: more than 0.
        group: of ``torch.distributed``; None is the one of all processes.
    """
    from datetime import timedelta

    import torch.distributed as dist

    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(timedelta(seconds=seconds), group)


def rendezvous_store() -> Any:
    """The key-value store at which the processes of the job met; torch has no public name for it.

    Raises:
        ValueError: there is no process group.
    """
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


class _LentDynamo(ModuleType):
    """Stands for ``torch._dynamo.utils``; whatever else is asked for is the real module's."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """Ask the real one."""
        real: Any = importlib.import_module("torch._dynamo.utils")
        return bool(real.is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _disable_when_called(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Like ``torch.compiler.disable``, which is called when the function is."""
    if function is None:
        return functools.partial(_disable_when_called, **kwargs)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        compiler: Any = importlib.import_module("torch.compiler")
        return compiler.disable(function, *args, **kwargs)(*given, **named)

    return call


class _NumpyWithFloat(ModuleType):
    """numpy, and ``float`` as it was until numpy 1.23: Python's own."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("numpy"), name)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _resource_filename(package: str, resource: str) -> str:
    """Return the file of a package's resource, like the function of ``pkg_resources``."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {package!r}", name=package)
    return os.path.join(os.path.dirname(spec.origin), resource)
