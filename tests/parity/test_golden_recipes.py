"""Weights made from a recipe are the ones the reference numbers were computed with."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from parity import golden

RECIPES = sorted(golden.folder("flux").glob(f"*{golden.RECIPE_SUFFIX}"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe(path):
    recipe = json.loads(path.read_text(encoding="utf-8"))
    config, state_dict = golden.weights(path.name.removesuffix(golden.RECIPE_SUFFIX), "flux")
    assert config == recipe.get("config", recipe)
    count = sum(tensor.numel() for tensor in state_dict.values())
    assert count == recipe.get("parameters", count)
    for tensor in state_dict.values():
        assert tensor.dtype == torch.float32 and tensor.count_nonzero() == tensor.numel()
    for name, values in recipe.get("check", {}).items():
        assert state_dict[name].flatten()[: len(values)].tolist() == values


def test_a_recipe_that_makes_something_else_is_refused(tmp_path):
    values = (0.5 * golden.uniform("7:a.weight", 6)).astype("<f4")
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    recipe = {"tensors": {"a.weight": [[2, 3], 0.5, 0.0]}, "seed": 7, "sha256": digest}
    path = tmp_path / f"same{golden.RECIPE_SUFFIX}"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    assert golden.expanded(path)[1]["a.weight"].flatten().tolist() == values.tolist()
    path = tmp_path / f"other{golden.RECIPE_SUFFIX}"
    path.write_text(json.dumps(recipe | {"seed": recipe["seed"] + 1}), encoding="utf-8")
    with pytest.raises(AssertionError, match="does not expand to the weights"):
        golden.expanded(path)
