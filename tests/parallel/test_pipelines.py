"""Stages of a model on several ranks: the last one gives features, and the loss has the head."""

import pytest
import torch

import xent

from . import pipelines_on_ranks as pipelines
from .pool import values


def of_one_process(x, labels):
    parts = pipelines.parts(2)
    loss = xent.cross_entropy(parts[1].head(parts[1](parts[0](x))), labels, class_dim=-1)
    loss.backward()
    return loss.item(), [{n: p.grad for n, p in part.named_parameters()} for part in parts]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "factor"), [({"scale_grads": False}, 1.0), ({}, 0.5)])
def test_a_pipeline_of_two_stages(ranks, options, factor):
    x = torch.randn(4, 5, pipelines.WIDTH, dtype=torch.float64)
    labels = torch.randint(pipelines.CLASSES, (4, 5))
    labels[:2, 1:] = -100  # the micro-batches have different numbers of tokens
    whole, truths = of_one_process(x, labels)
    found = values(ranks.run(pipelines.step, 2, x, labels, 2, options))
    assert found[-1][0] == pytest.approx(whole, rel=1e-12)
    for (_, gradients), truth in zip(found, truths, strict=True):
        for name, slope in truth.items():
            torch.testing.assert_close(gradients[name], factor * slope, rtol=1e-10, atol=1e-12)
