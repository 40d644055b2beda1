"""Fixtures: ComfyUI in this process (`host`), as a server (`server`), and its frontend in a browser (`frontend`)."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from _pack import ROOT, load_pack
from comfy_frontend import RENDERERS, Frontend, find_browser
from comfy_server import ComfyServer
from harness.host import InProcessHost, start_host
from host_env import Host, find_host

load_pack()

CUSTOM_NODES = {"realisr": ROOT, "realisr_test_nodes": ROOT / "tests" / "test_nodes"}

NO_BROWSER = "no chromium, chromium-browser or google-chrome on PATH"

USED_BY_FIXTURE = {"host": "host", "server": "e2e", "start_server": "e2e", "frontend": "browser", "canvas": "browser"}

SCREENSHOTS = Path(os.environ.get("REALISR_SCREENSHOTS", ROOT / "test_output" / "screenshots"))

OTHER_FRONTEND = os.environ.get("REALISR_FRONTEND")
"""Folder `static` of a comfyui-frontend-package, in place of the one that ComfyUI brings."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use, so that `-m "not browser"` needs no upkeep."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in USED_BY_FIXTURE:
                item.add_marker(USED_BY_FIXTURE[fixture])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say at the very end which tier was left out for want of a browser, and how to add it."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    skipped = sum(NO_BROWSER in str(report.longrepr) for report in reports)
    if skipped:
        terminalreporter.section("left out", yellow=True)
        terminalreporter.line(
            f"The browser tier, {skipped} tests: {NO_BROWSER}. To add it: "
            '`apt-get install chromium` (or install Chrome), then `make test ARGS="-m browser"`.'
        )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws from the global generator draws the same each time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def comfyui() -> Host:
    """Where ComfyUI and its Python are. Made by `make setup`, or named by COMFYUI_PATH."""
    found = find_host()
    assert found is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    return found


@pytest.fixture(scope="session")
def host(comfyui: Host, tmp_path_factory: pytest.TempPathFactory) -> InProcessHost:
    """ComfyUI inside this process."""
    return start_host(comfyui.comfyui, tmp_path_factory.mktemp("in_process_host"))


@pytest.fixture(scope="session")
def start_server(
    comfyui: Host, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[ComfyServer]]:
    """Makes servers of their own for tests that need other arguments: `with start_server("--lowvram") as server:`."""

    frontend = ("--front-end-root", OTHER_FRONTEND) if OTHER_FRONTEND else ()

    def start(*arguments: str) -> AbstractContextManager[ComfyServer]:
        return ComfyServer(comfyui, tmp_path_factory.mktemp("server"), CUSTOM_NODES, (*frontend, *arguments))

    return start


@pytest.fixture(scope="session")
def server(start_server: Callable[..., AbstractContextManager[ComfyServer]]) -> Iterator[ComfyServer]:
    """A running ComfyUI with the pack and the test nodes, shared by the whole session."""
    with start_server() as running:
        yield running


@pytest.fixture
def bare_models(server: ComfyServer) -> Iterator[None]:
    """Model folders of `server` with nothing in them for one test: others leave files there."""
    names = ("clip_vision", "controlnet", "diffusion_models", "LLM", "loras", "model_patches", "text_encoders", "vae")
    folders = [server.models / name for name in names]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        folder.rename(folder.with_suffix(".aside"))
        folder.mkdir()
    yield
    for folder in folders:
        shutil.rmtree(folder)
        folder.with_suffix(".aside").rename(folder)


@pytest.fixture(scope="session")
def frontend(server: ComfyServer) -> Iterator[Frontend]:
    """The real frontend of `server` in headless Chromium. Skips without a browser, except on CI."""
    executable = find_browser()
    if executable is None:
        assert os.environ.get("CI") != "true", f"{NO_BROWSER}, and CI must run the browser tests"
        pytest.skip(NO_BROWSER)
    with Frontend(server.url, executable) as running:
        yield running


@pytest.fixture(params=RENDERERS)
def canvas(frontend: Frontend, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    """The frontend with each of its two node renderers in turn; must end without an error of the page.

    What the page shows at the end of the test lands in SCREENSHOTS, for people to look at.
    """
    frontend.use_renderer(request.param)
    frontend.errors.clear()
    yield frontend
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    frontend.screenshot(SCREENSHOTS / f"{re.sub(r'[^A-Za-z0-9]+', '_', request.node.name).strip('_')}.png")
    assert frontend.errors == []
