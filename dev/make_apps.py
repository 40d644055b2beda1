"""Write the templates that open as an app, from those they show in simple: `make apps`.

An app is the graph of another template with `extra.linearMode`, and in `extra.linearData` the widgets that it shows and
the nodes whose pictures it shows. Run it after changing one of those templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import NAMESPACE_URL, uuid5

from export_workflows import write_json
from templates import WORKFLOWS, read, template


@dataclass(frozen=True)
class App:
    title: str
    of: str
    """Name of the template whose graph it has."""
    shown: tuple[tuple[str, str], ...]
    """(class of the node, widget) in the order of the app."""


RESTORE, PURE, COMPARE = "RealISR_RestorationCFGSampler", "RealISR_ARTokenRestorer", "RealISR_CompareMethods"
PHOTO = ("LoadImage", "image")

APPS = {
    "app_vosr_nano": App(
        "03 App - repair a photo (no download).app", "vosr_nano_restore", (PHOTO, (RESTORE, "resize.scale"))
    ),
    "app_compare_methods": App(
        "06 App - compare all methods.app",
        "compare_methods",
        (
            PHOTO,
            (COMPARE, "scale"),
            *((COMPARE, name) for name in ("vosr_nano", "vosr", "vicr", "dreamsr", "pure", "upscale_model", "prompt")),
        ),
    ),
    # A one-step model reads no guidance, so a preset would change nothing: what can be chosen is whose colours.
    "app_vosr": App(
        "10 App - VOSR in one step.app",
        "vosr_one_step",
        (PHOTO, (RESTORE, "resize.scale"), (RESTORE, "color_alignment"), (RESTORE, "seed")),
    ),
    "app_pure": App(
        "20 App - PURE, token by token.app",
        "pure_tiled",
        (PHOTO, (PURE, "resize.scale"), (PURE, "preset"), (PURE, "description"), (PURE, "seed")),
    ),
}


def main() -> None:
    for name, app in APPS.items():
        drawn = read(template(app.of).path)
        ids = {node["type"]: str(node["id"]) for node in drawn["nodes"]}
        # Its own, or ComfyUI takes its tab for that of the template it shows.
        drawn["id"] = str(uuid5(NAMESPACE_URL, f"realisr/{name}"))
        drawn["extra"] |= {
            "realisr": {"name": name},
            "linearMode": True,
            "linearData": {
                "inputs": [[ids[node], widget] for node, widget in app.shown],
                "outputs": [ids["SaveImage"]],
            },
        }
        write_json(WORKFLOWS / f"{app.title}.json", drawn)


if __name__ == "__main__":
    main()
