"""PyTorch's training steps, to be timed beside ours; torch is imported when one is measured."""

import argparse
import contextlib
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from mlc_jax.errors import InputError

# (call, wait) -> seconds per call.
TimeCalls = Callable[[Callable[[], Any], Callable[[], Any]], float]

_NUM_CLASSES = 10
# As the released command for CIFAR-10 sets them.
_SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
_META_RATE = 3e-4


class ReleasedCode:
    """The steps of https://github.com/microsoft/MLC, unchanged.

    Args:
      clone: the repository's directory.

    Raises:
      InputError: it is not there.
    """

    def __init__(self, clone: str):
        if not (pathlib.Path(clone) / "mlc.py").is_file():
            raise InputError(f"--released_code: no mlc.py in {clone!r}; expected a clone")
        sys.path.insert(0, clone)
        # torchvision is needed for Clothing1M's network alone.
        self._resnet = importlib.import_module("CIFAR.resnet")
        self._mlc = importlib.import_module("mlc")
        self._meta = importlib.import_module("meta_models")

    def measure(self, step: str, size: int, dtype: str, time_calls: TimeCalls) -> dict[str, float]:
        """Times a step of ResNet-32 with `size` noisy and as many clean examples.

        Args:
          step: `plain`, cross-entropy on the images of the inner loss, or `exact`, MLC at k = 1.
          size: of the noisy batch; the clean batch, dealt into halves, has as many.
          dtype: float32, with TF32, or bfloat16 by autocast.
          time_calls: see `TimeCalls`.
        """
        import torch
        from torch.nn import functional

        _allow_tf32()
        half = size // 2
        net = self._resnet.resnet32(_NUM_CLASSES).cuda()
        options = argparse.Namespace(
            skip=False, sparsemax=False, tie=False, dw_prev=None, steps=0, gradient_steps=1
        )
        meta = self._meta.MetaNet(64, 64, 128, _NUM_CLASSES, options).cuda()
        opt = torch.optim.SGD(net.parameters(), **_SGD)
        meta_opt = torch.optim.Adam(meta.parameters(), lr=_META_RATE, amsgrad=True)
        options.dw_prev = [0 for _ in meta.parameters()]
        images = torch.randn(size + 2 * half, 3, 32, 32, device="cuda")
        labels = torch.randint(_NUM_CLASSES, (size + 2 * half,), device="cuda")
        parts = [slice(0, size), slice(size, size + half), slice(size + half, None)]
        noisy, inner, outer = ((images[part], labels[part]) for part in parts)

        def soft(logits: Any, target: Any) -> Any:
            return -(target * functional.log_softmax(logits, dim=-1)).sum(-1).mean()

        def plain() -> None:
            with _autocast(dtype):
                loss = functional.cross_entropy(net(images[: size + half]), labels[: size + half])
            opt.zero_grad()
            loss.backward()
            opt.step()

        def mlc() -> None:
            with _autocast(dtype):
                self._mlc.step_hmlc_K(
                    net, opt, functional.cross_entropy, meta, meta_opt, soft,
                    *noisy, *outer, *inner, _SGD["lr"], options,
                )  # fmt: skip

        return _measure(plain if step == "plain" else mlc, time_calls)


def measure_bert(
    checkpoint: str, num_texts: int, length: int, dtype: str, time_calls: TimeCalls
) -> dict[str, float]:
    """Times PyTorch's plain step of a BERT with a linear classifier on its mean token.

    Args:
      checkpoint: a directory whose config.json is the shape; weights are random.
      num_texts, length: of the batch; all tokens are attended.
      dtype: float32, with TF32, or bfloat16 by autocast.
      time_calls: see `TimeCalls`.
    """
    import torch
    import transformers

    _allow_tf32()
    shape = transformers.AutoConfig.from_pretrained(checkpoint)
    net = transformers.AutoModel.from_config(shape).cuda().train()
    head = torch.nn.Linear(shape.hidden_size, 4).cuda()
    parameters = [*net.parameters(), *head.parameters()]
    opt = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01, fused=True)
    ids = torch.randint(1000, shape.vocab_size, (num_texts, length), device="cuda")
    mask = torch.ones_like(ids)
    labels = torch.randint(4, (num_texts,), device="cuda")

    def plain() -> None:
        with _autocast(dtype):
            states = net(input_ids=ids, attention_mask=mask).last_hidden_state
            loss = torch.nn.functional.cross_entropy(head(states.mean(1)).float(), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()

    row = _measure(plain, time_calls)
    return row | {"tokens_per_second": 1e3 * num_texts * length / row["ms"]}


def _measure(call: Callable[[], Any], time_calls: TimeCalls) -> dict[str, float]:
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ms = 1e3 * time_calls(call, torch.cuda.synchronize)
    return {"ms": ms, "peak_mib": torch.cuda.max_memory_allocated() / 2**20}


def _allow_tf32() -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # As the released code.


def _autocast(dtype: str) -> contextlib.AbstractContextManager[Any]:
    import torch

    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cuda", getattr(torch, dtype))
