"""The teacher of a distillation: the float model's class probabilities, averaged over views of each image.

In: a float model, images. Out: log-probabilities, as PyTorch computes them; those of a whole training set are cached.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from resnet8_quant import __version__
from resnet8_quant.config import RefineConfig
from resnet8_quant.errors import ExperimentError, missing_extra
from resnet8_quant.files import sha256_bytes
from resnet8_quant.graphs.runtime import new_session
from resnet8_quant.inputs.model import FloatModel
from resnet8_quant.machine import cpu_description
from resnet8_quant.npz_cache import cache_key, cached
from resnet8_quant.progress import progress
from resnet8_quant.quantizer.refine.torch_graph import TorchGraph
from resnet8_quant.quantizer.refine.views import PLAIN, averaged, look

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    raise missing_extra("torch", "distill") from error

CHUNK = 100  # images in a call without gradients; with 500 an image takes twice the time
CHECKED = 32  # images on which PyTorch is compared with ONNX Runtime
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order, not another model
SAME_CLASS = 0.7  # share of images whose class a mirror or a shift must leave as it is


class Teacher:
    """A float model that says what the student is to say."""

    def __init__(self, model: FloatModel, images: np.ndarray, refine: RefineConfig, sample: np.ndarray) -> None:
        """Translate the model and check that its views show the same things.

        Args:
            images: uint8 [N,H,W,C].
            refine: ``mirror`` and ``shift`` are read.
            sample: indices of the images that the checks look at.

        Raises:
            ExperimentError: an operator or attribute has no translation; a view changes what is seen.
        """
        self.model, self.images, self.refine = model, images, refine
        self._graph = TorchGraph(model.proto())
        self._check_translation(sample)
        self._check_views(sample)

    def inputs(self, rows: np.ndarray, views: np.ndarray | tuple[int, int, int] = PLAIN) -> torch.Tensor:
        """What the model reads of images in the ``views``, one for all or one for each."""
        return torch.from_numpy(self.model.input_spec.prepare(look(self.images[rows], views)))

    def log_probabilities(self, rows: np.ndarray) -> torch.Tensor:
        """The mean probabilities over the views, as logarithms, float32 [n, classes]."""
        views, batches = averaged(self.refine.mirror, self.refine.shift), []
        with progress(f"the float model on {len(views)} views of each image", len(rows), "images") as advance:
            for batch in parts(rows):
                each = torch.stack([self._of_view(batch, view) for view in views])
                batches.append(torch.logsumexp(each, 0) - math.log(len(views)))
                advance(len(batch))
        return torch.cat(batches)

    def cached_log_probabilities(self, rows: np.ndarray, digest: str, folder: Path) -> torch.Tensor:
        """`log_probabilities`, from the cache where another run left them: other seeds and bit widths ask the same.

        Args:
            digest: of the images that ``rows`` is chosen from.
            folder: of the cache.
        """
        facts = {
            "model": sha256_bytes(self.model.serialized),
            "images": [digest, sha256_bytes(rows.astype("<i8").tobytes())],
            "input": repr(self.model.input_spec),
            "views": [self.refine.mirror, self.refine.shift],
            "versions": [__version__, torch.__version__, torch.get_num_threads(), cpu_description()],
        }
        found, _ = cached(
            folder,
            cache_key(facts),
            lambda: self.log_probabilities(rows),
            lambda value: {"log_probabilities": value.numpy()},
            lambda arrays: torch.from_numpy(arrays["log_probabilities"].reshape(len(rows), -1)),
        )
        return found

    def _of_view(self, rows: np.ndarray, view: tuple[int, int, int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self._graph.run(self.inputs(rows, view), self._graph.logits())
            return F.log_softmax(logits.reshape(len(rows), -1), 1)

    def _check_translation(self, sample: np.ndarray) -> None:
        """Refuse a float model that PyTorch computes otherwise than ONNX Runtime."""
        size = self.model.input_spec.batch or min(len(sample), CHECKED)
        feed = self.inputs(np.resize(sample, size))
        session = new_session(self.model.serialized, level="none")
        expected = session.run([self._graph.output], {self._graph.input: feed.numpy()})[0]
        with torch.inference_mode():
            computed = self._graph.run(feed).numpy()
        if computed.shape != expected.shape or np.abs(computed - expected).max() > TOLERANCE * np.abs(expected).max():
            raise ExperimentError(
                "`refine.distill`: PyTorch computes another output of the float model than ONNX Runtime, so an "
                "attribute of one of its operators has no translation",
                "refine=best",
            )

    def _check_views(self, sample: np.ndarray) -> None:
        """Refuse views in which things are seen as others: mirrored digits and signs, shifted small images."""
        shift = self.refine.shift
        checks = []  # (setting, what it does to an image, the view, how it is switched off)
        if self.refine.mirror:
            checks.append(("mirror", "mirrored", (1, 0, 0), "false"))
        if shift:
            checks.append(("shift", "shifted", (0, shift, shift), "0"))
        if not checks:
            return

        def classes(view: tuple[int, int, int]) -> torch.Tensor:
            return torch.cat([self._of_view(batch, view).argmax(1) for batch in parts(sample)])

        plain = classes(PLAIN)
        for name, done, view, off in checks:
            same = (classes(view) == plain).float().mean().item()
            if same < SAME_CLASS:
                raise ExperimentError(
                    f"`refine.{name}` averages over {done} images, but {done} the float model gives only "
                    f"{100 * same:.0f} % of {len(sample)} training images the class that they have unchanged",
                    f"refine=distill refine.{name}={off}",
                )


def parts(rows: np.ndarray) -> list[np.ndarray]:
    """``rows`` in the pieces that a call without gradients takes."""
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
