"""Which program draws 120,000 papers in one HTML file without a GPU: four libraries and our own; writes results/map_trial.json.

    pip install bokeh plotly pydeck
    python -m benchmarks.map_trial           # or the names of some, as in `BUILDERS`

Each library's JavaScript comes inside its wheel. The same places, colors and titles are written by each, and opened by the system's Chromium
with software rendering, as on a remote desktop. jupyter-scatter is made for notebooks, so a few lines here stand in for Jupyter.

bytes           size of the file
first_paint_ms  from the navigation to the first frame that has colored points
frames_s        frames a second while the mouse drags the map for three seconds
worst_ms        longest time between two of those frames
hover_ms        from a move of the mouse to the frame that has a tooltip, the median of 15
"""

import base64
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arxiv_embeddings.explore.map import MapContent, render_map
from arxiv_embeddings.explore.plots import COLORS
from benchmarks.main_job import name_processor
from tests.fakes.maps import make_content

RESULTS = Path(__file__).parent / "results" / "map_trial.json"
N_PAPERS = 120_000
WIDTH, HEIGHT = 1200, 760


def build_plotly(content: MapContent) -> str:
    import plotly.graph_objects as go

    titles, figure = np.array(content.papers["title"], dtype=object), go.Figure()
    for number, color in enumerate(COLORS):
        x, y = content.places[content.group_of == number].T
        text = titles[content.group_of == number].tolist()
        marker = {"size": 3, "color": color}
        figure.add_trace(go.Scattergl(x=x, y=y, mode="markers", marker=marker, text=text, hoverinfo="text"))
    figure.update_layout(dragmode="pan", width=WIDTH, height=HEIGHT)
    return figure.to_html(include_plotlyjs=True)


def build_bokeh(content: MapContent) -> str:
    from bokeh.embed import file_html
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure
    from bokeh.resources import INLINE

    options = {"tools": "pan,wheel_zoom,hover", "active_drag": "pan", "tooltips": [("title", "@title")]}
    plot = figure(width=WIDTH, height=HEIGHT, output_backend="webgl", **options)
    x, y = content.places.T
    columns = {"x": x, "y": y, "color": np.array(COLORS)[content.group_of], "title": content.papers["title"]}
    plot.scatter("x", "y", size=3, color="color", line_color=None, source=ColumnDataSource(columns))
    return file_html(plot, INLINE, "map")


def build_pydeck(content: MapContent) -> str:
    import pydeck

    colors = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in COLORS]
    rows = zip(content.places.tolist(), content.group_of.tolist(), content.papers["title"], strict=True)
    data = [{"place": place, "color": colors[number], "title": title} for place, number, title in rows]
    layer = pydeck.Layer(
        "ScatterplotLayer", data, get_position="place", get_fill_color="color", get_radius=0.03, pickable=True
    )
    view = pydeck.View("OrthographicView", controller=True)
    state = pydeck.ViewState(target=[0, 0], zoom=5)
    deck = pydeck.Deck([layer], views=[view], initial_view_state=state, map_provider=None, tooltip={"text": "{title}"})
    return deck.to_html(as_string=True, offline=True)


HOST = """
const decode = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
for (const [name, value] of Object.entries(state))
  if (value && typeof value === "object" && "bytes" in value)
    state[name] = { view: new DataView(decode(value.bytes).buffer), dtype: value.dtype, shape: value.shape };
const listeners = {}, tell = (event, ...facts) => (listeners[event] ?? []).forEach((listener) => listener(...facts));
const model = {
  get: (name) => state[name], save_changes() {}, off() {},
  set(name, value) { state[name] = value; tell(`change:${name}`); },
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  send: ({ type, index }) => { if (type === state.event_types.TOOLTIP) tell("msg:custom", { type, index, properties: { title: titles[index] } }); },
};
const source = new Blob([new TextDecoder().decode(decode(document.getElementById("bundle").textContent))], { type: "text/javascript" });
const widget = await import(URL.createObjectURL(source));
await widget.default.render({ model, el: document.getElementById("app") });
"""


def build_jupyter_scatter(content: MapContent) -> str:
    import jscatter
    import pandas as pd

    x, y = content.places.T
    frame = pd.DataFrame({"x": x, "y": y, "title": content.papers["title"], "group": content.group_of.astype(str)})
    frame["group"] = frame["group"].astype("category")
    options = {"width": WIDTH, "height": HEIGHT, "size": 3, "opacity": 1, "axes": False}
    plot = jscatter.Scatter(
        data=frame, x="x", y="y", color_by="group", tooltip=True, tooltip_properties=["title"], **options
    )

    def to_plain(value: Any) -> Any:
        if isinstance(value, dict) and "view" in value:
            encoded = base64.b64encode(bytes(value["view"])).decode()
            return {"bytes": encoded, "dtype": value["dtype"], "shape": value["shape"]}
        if isinstance(value, dict):
            return {name: to_plain(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [to_plain(one) for one in value]
        return value.item() if isinstance(value, np.generic) else value

    state = {name: to_plain(value) for name, value in plot.widget.get_state().items() if name not in ("_esm", "_css")}
    folder = Path(jscatter.__file__).parent
    bundle = base64.b64encode((folder / "bundle.js").read_bytes()).decode()
    texts = [json.dumps(one, default=str).replace("<", "\\u003c") for one in (state, content.papers["title"])]
    return (
        f"<!doctype html><meta charset=utf-8><style>{(folder / 'bundle.css').read_text()}</style><div id=app></div>"
        f"<script type=text/plain id=bundle>{bundle}</script>"
        f"<script type=module>const state = {texts[0]}, titles = {texts[1]};{HOST}</script>"
    )


BUILDERS: dict[
    str, tuple[Callable[[MapContent], str], str]
] = {  # name: what writes the file, and whether there is a tooltip
    "ours": (render_map, "!document.getElementById('tip').hidden"),
    "jupyter-scatter": (
        build_jupyter_scatter,
        "[...document.querySelectorAll('#app *')].some((one) => !one.children.length && one.textContent.length > 30 "
        "&& one.getBoundingClientRect().width > 0 && getComputedStyle(one).opacity > 0)",
    ),
    "plotly": (build_plotly, "document.querySelector('.hoverlayer .hovertext') !== null"),
    "bokeh": (
        build_bokeh,
        "(() => { const look = (root) => [...root.querySelectorAll('*')].some((one) => "
        "(String(one.className).toLowerCase().includes('tooltip') && one.offsetWidth > 10) "
        "|| (one.shadowRoot && look(one.shadowRoot))); return look(document); })()",
    ),
    "pydeck": (build_pydeck, "[...document.querySelectorAll('.deck-tooltip')].some((one) => one.offsetWidth > 10)"),
}


def find_first_paint(page: Any, path: Path) -> int | None:
    "Open a file; milliseconds until a frame has colored points, `None` if none comes."
    frames, session = [], page.context.new_cdp_session(page)

    def keep(frame: dict[str, Any]) -> None:
        session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})
        frames.append((frame["metadata"]["timestamp"], frame["data"]))

    session.on("Page.screencastFrame", keep)
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 50, "maxWidth": 640, "maxHeight": 400})
    page.goto(path.as_uri(), wait_until="commit")
    begin = page.evaluate("performance.timeOrigin") / 1000
    until, n_seen, first = time.time() + 30, 0, None
    while time.time() < until and first is None:
        page.wait_for_timeout(250)
        colored = (moment for moment, data in frames[n_seen:] if moment > begin and has_points(data))
        first, n_seen = next(colored, None), len(frames)
    session.send("Page.stopScreencast")
    return first and round(1000 * (first - begin))


def has_points(frame: str) -> bool:
    "Whether a frame, a JPEG in base64, has colored points in its middle."
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame))).convert("RGB")).astype(int)[60:340, 160:560]
    return bool((np.ptp(picture, axis=2) > 40).mean() > 0.01)


def pan(page: Any) -> tuple[float, int]:
    "Drag the map for three seconds; frames a second, and the longest time between two, in milliseconds."
    page.evaluate(
        "() => { window.times = []; const tick = (now) => { times.push(now); window.ended || requestAnimationFrame(tick); }; "
        "requestAnimationFrame(tick); }"
    )
    page.mouse.move(640, 400)
    page.mouse.down()
    begin, step = time.time(), 0
    while time.time() - begin < 3:
        step += 1
        page.mouse.move(640 + 150 * float(np.sin(step / 15)), 300 + 100 * float(np.cos(step / 15)))
    page.mouse.up()
    times = np.array(page.evaluate("() => { window.ended = true; return times; }"))
    return round(1000 * (len(times) - 1) / (times[-1] - times[0]), 1), round(np.diff(times).max())


def hover(page: Any, tooltip: str) -> float | None:
    "Milliseconds from a move of the mouse to the frame with a tooltip."
    page.evaluate(
        """(tooltip) => { window.delays = []; window.waits = false; let begin = 0; const shown = new Function(`return ${tooltip}`);
        addEventListener("mousemove", () => { begin = performance.now(); window.waits = true; }, true);
        const look = () => { if (window.waits && shown()) { delays.push(performance.now() - begin); window.waits = false; } requestAnimationFrame(look); };
        look(); }""",
        tooltip,
    )
    generator = np.random.default_rng(1)
    for _ in range(15):
        page.mouse.move(5, 795)
        page.wait_for_timeout(200)
        page.evaluate("() => { window.waits = false; }")
        page.mouse.move(400 + float(generator.integers(0, 400)), 150 + float(generator.integers(0, 350)))
        page.wait_for_timeout(500)
    delays = page.evaluate("delays")
    return round(float(np.median(delays)), 1) if delays else None


def measure(browser: Any, path: Path, tooltip: str) -> dict[str, Any]:
    "All figures of one file."
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    first_paint = find_first_paint(page, path)
    found = {"bytes": path.stat().st_size, "first_paint_ms": first_paint, "errors": errors}
    if first_paint is not None:
        page.wait_for_timeout(3000)  # until titles are read as well
        frames, worst = pan(page)
        page.wait_for_timeout(1000)
        found |= {"frames_s": frames, "worst_ms": worst, "hover_ms": hover(page, tooltip)}
    page.close()
    return found


def main() -> None:
    "Measure the programs that the command line names, or all, and write the figures beside earlier ones."
    from playwright.sync_api import sync_playwright

    content = make_content(N_PAPERS)
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name in sys.argv[1:] or BUILDERS:
            build, tooltip = BUILDERS[name]
            (path := Path(folder) / f"{name}.html").write_text(build(content), encoding="utf-8")
            made = {"version": version("arxiv-embeddings" if name == "ours" else name)}
            figures[name] = made | measure(browser, path, tooltip) | {"processor": name_processor()}
            print(name, json.dumps(figures[name]), flush=True)
            RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
