from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from pruneport.export.card.front_matter import FrontMatter, front_matter, has_front_matter


def _read(card: FrontMatter) -> Any:
    """What a reader of YAML makes of it."""
    text = card.to_yaml()
    assert has_front_matter(text)
    head, content, rest = text.split("---\n")
    assert head == rest == ""
    return yaml.safe_load(content)


def test_huggingface_hub_reads_every_figure(plan: Any, verify: Any, bench: Any) -> None:
    loaded = _read(front_matter(plan, verify, bench))
    data = ModelCardData(**loaded)
    assert data.library_name == "pruneport"
    assert data.tags == ["pruneport", "pruned", "torchvision", "onnx"]
    assert data.pipeline_tag == "image-classification"
    name, results = model_index_to_eval_results(loaded["model-index"])
    assert name == "torchvision-resnet50 pruned"
    first = results[0]
    assert (first.task_type, first.dataset_name, first.dataset_type) == (
        "image-classification",
        "imagenet-samples",
        "imagefolder",
    )
    assert (first.metric_type, first.metric_value) == ("accuracy", verify["accuracy"]["pruned_onnx"])
    assert first.metric_name == "Top-1, 250 images, ONNX Runtime"
    others = {(result.metric_type, result.metric_name): result.metric_value for result in results[1:]}
    for entry in bench["batches"]:
        at = f"batch {entry['batch']} on AMD EPYC 9654"
        assert others["latency", f"p50 in ms, {at}"] == entry["pruned"]["p50_ms"]
        assert others["speed-up", f"times as fast as dense, {at}"] == entry["speedup"]["ratio"]


def test_what_is_not_known_is_left_out(plan: Any) -> None:
    assert _read(front_matter(plan, None, None)) == {
        "library_name": "pruneport",
        "tags": ["pruneport", "pruned", "torchvision"],
    }


def test_random_weights_have_no_accuracy(plan: Any, verify: Any) -> None:
    plan["source"]["trained"] = False
    loaded = _read(front_matter(plan, verify, None))
    assert "model-index" not in loaded
    assert "pipeline_tag" not in loaded


def test_torch_counts_where_onnx_was_not_counted_and_training_where_neither_was(plan: Any, verify: Any) -> None:
    verify["accuracy"]["pruned_onnx"] = None
    metric = _read(front_matter(plan, verify, None))["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["value"], metric["name"]) == (verify["accuracy"]["pruned_torch"], "Top-1, 250 images, torch")
    plan["training"] = {"task": "birds", "top1": 0.75, "test_images": 40}
    verify["accuracy"] = None
    result = _read(front_matter(plan, verify, None))["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "birds"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75, "name": "Top-1, 40 test images, torch"}]


@pytest.mark.parametrize(
    ("spec", "weights", "expected"),
    [
        ("timm:resnet18", "hf-hub:me/birds@" + "a" * 40, "me/birds"),
        ("timm:resnet18", "a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm:resnet18", "no_such", None),
        ("timm:resnet18", "hf-hub:../..\n- evil: 1", None),
        ("timm:\x1b[31m", "DEFAULT", None),
        ("timm:resnet18", None, None),
        ("torchvision:resnet50", "IMAGENET1K_V2", None),
    ],
)
def test_base_model_is_named_where_it_lies_on_the_hub(spec: str, weights: Any, expected: Any, plan: Any) -> None:
    plan["source"] |= {"spec": spec, "weights": weights}
    assert _read(front_matter(plan, None, None)).get("base_model") == expected


@pytest.mark.parametrize(
    "name",
    [
        "a: b\n---\nlicense: mit",
        "x\x00\x1b[31m\x85\u2028y\u202e\ud800",
        "!!python/object/apply:os.system [ls]",
        "<script>alert(1)</script> [x](http://evil.example) `c` {{ y }} & *e* _f_ www.evil.example",
        "- a\n- b",
        "null",
        "'\"\\",
        "",
        "z" * 5000,
    ],
)
def test_names_from_outside_stay_one_plain_line(name: str, plan: Any, verify: Any, bench: Any) -> None:
    plan["source"]["spec"] = verify["accuracy"]["folder"] = bench["device"]["cpu"] = name
    card = front_matter(plan, verify, bench)
    loaded = _read(card)
    assert set(loaded) == {"library_name", "tags", "pipeline_tag", "model-index"}
    assert loaded["tags"] == ["pruneport", "pruned", "onnx"]
    shown = loaded["model-index"][0]["results"][0]["dataset"]["name"]
    assert isinstance(shown, str)
    assert 0 < len(shown) <= 100
    text = card.to_yaml()
    assert text.isascii()
    assert not set("<>`*[]{}!&#|@\x1b\x00") & set(text.replace(": []", ""))
    assert "www.evil" not in text
    assert "_f_" not in text
