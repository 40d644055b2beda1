"""Templates that open as an app: what they run is another template, and the simplest runs by its button."""

from __future__ import annotations

import pytest
from PIL import Image

from comfy_frontend import Frontend
from comfy_server import ComfyServer
from make_apps import APPS
from templates import read, template

GRAPHS = ("app_vosr_nano", "app_vosr", "app_pure", "app_compare_methods")


@pytest.mark.parametrize("name", GRAPHS)
def test_an_app_runs_what_its_template_runs(name: str):
    assert read(template(name).twin) == read(template(APPS[name].of).twin)


def test_there_is_a_test_for_every_app():
    assert sorted(GRAPHS) == sorted(APPS)


def test_the_app_runs_to_a_picture(frontend: Frontend, server: ComfyServer):
    """As a user does: the controls are there in words, Run is pressed, the picture comes."""
    page = frontend.page
    app = read(template("app_vosr_nano").path)
    (photo,) = (node for node in app["nodes"] if node["type"] == "LoadImage")
    photo["widgets_values"][0] = server.client.upload_image(Image.new("RGB", (48, 32), "teal"), "app_photo.png")
    opened = frontend.open(app)
    assert (opened.missing_nodes, opened.errors) == ([], [])
    controls = page.get_by_text("Scale", exact=True)
    controls.first.wait_for()
    before = len(server.client.get("/history"))
    page.get_by_role("button", name="Run", exact=True).last.click()
    page.locator("img[src*='vosr_nano']").first.wait_for(timeout=120_000)
    frontend.wait_until_idle()
    assert len(server.client.get("/history")) == before + 1
    assert frontend.errors == []
    frontend.open({"nodes": [], "links": [], "version": 0.4})
