"""The list of model files on the loaders, in both renderers."""

from __future__ import annotations

import shutil
from typing import Any

from harness.checkpoints import save_vosr_folder, vosr_config

GRAPH = {
    "1": {
        "class_type": "RealISR_LoadVOSRModel",
        "inputs": {"model_name": "VOSR_0.5B_ms/checkpoints/ema_model.safetensors"},
    },
    "2": {"class_type": "RealISR_LoadMMControlNet", "inputs": {"control_name": "dreamsr_mm_controlnet.safetensors"}},
}

LISTS = """() => [...document.querySelectorAll('.realisr-models')].map((box) => ({
    method: box.querySelector('select')?.selectedOptions[0].textContent ?? box.querySelector('header div')?.textContent,
    rows: [...box.querySelectorAll('li')].map((row) => [
        row.querySelector('span').textContent,
        row.querySelector(':scope > div > div').textContent,
        row.querySelector('small').textContent,
        row.querySelector('button')?.title ?? '',
    ]),
    text: box.textContent,
}))"""

SIZES = "() => window.app.graph.nodes.map((node) => [...node.size])"


def lists(canvas, first: str, mark: str = "") -> list[dict[str, Any]]:
    """What the loaders list, once the first one shows this method, or this mark at its first file."""
    canvas.page.wait_for_function(
        f"""([first, mark]) => {{
            const lists = ({LISTS})();
            return lists.length === 2 && lists.every(({{ method }}) => method)
                && lists[0].method === first && (lists[0].rows[0]?.[0] ?? '').startsWith(mark);
        }}""",
        arg=[first, mark],
    )
    return canvas.page.evaluate(LISTS)


def test_the_list_follows_the_choice_and_the_files(bare_models, canvas, server):
    """Absent, in part, here; as chosen in the loader; after a tab switch, an undo and a reload of the file."""
    canvas.open_api(GRAPH)
    sizes = canvas.page.evaluate(SIZES)
    vosr, dreamsr = lists(canvas, "VOSR 0.5B multi-step", "○")
    link = "https://huggingface.co/CSWRY/VOSR"
    assert vosr["rows"] == [
        ["○", "VOSR_0.5B_ms", "≈ 1.9 GB · diffusion_models", link],
        ["○", "stable-diffusion-2-1-base", "≈ 335 MB · vae", link],
        ["○", "sd21_lwdecoder.pth", "≈ 52 MB · vae", link],
        ["○", "dinov2_vitb14_pretrain.pth", "≈ 346 MB · clip_vision", link],
    ]
    assert dreamsr["method"] == "DreamSR"
    assert ["○", "dreamsr_mm_controlnet.safetensors", "≈ 8.0 GB · controlnet", ""] in dreamsr["rows"]

    folder = server.models / "diffusion_models" / "VOSR_0.5B_ms"
    save_vosr_folder(folder, vosr_config(), 0)
    try:
        (folder / "args.json").unlink()
        refresh = "() => document.querySelector('.realisr-models header button').click()"
        canvas.page.evaluate(refresh)
        vosr, _ = lists(canvas, "VOSR 0.5B multi-step", "◐")
        assert vosr["rows"][0][2] == "1 of 2 files · diffusion_models"
        (folder / "args.json").write_text("{}")
        canvas.page.evaluate(refresh)
        vosr, _ = lists(canvas, "VOSR 0.5B multi-step", "✓")
        assert vosr["rows"][0] == ["✓", "VOSR_0.5B_ms", "diffusion_models", ""]
        assert canvas.page.evaluate(SIZES) == sizes, "the list must not push the nodes around"
        for change in (canvas.switch_tab_and_back, canvas.undo_a_move, lambda: canvas.open(canvas.export_ui())):
            change()
            assert lists(canvas, "VOSR 0.5B multi-step", "✓")[0] == vosr
    finally:
        shutil.rmtree(folder)

    canvas.page.evaluate(
        """() => {
            const node = window.app.graph.nodes.find(({ type }) => type === "RealISR_LoadVOSRModel");
            const widget = node.widgets.find(({ name }) => name === "model_name");
            widget.value = "VOSR nano (bundled)";
            widget.callback?.(widget.value, window.app.canvas, node);
        }"""
    )
    vosr, _ = lists(canvas, "VOSR nano")
    assert vosr["rows"] == []
    assert "nothing to download" in vosr["text"]
