"""The page of a bundle in a real browser: its charts, its table, its safety."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser import CHROMIUM, Browser, Page
from tests.cli.runs import bundle

from ergo_capture import (
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    RunTermination,
    encode_bundle,
)
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.report.page import report_page

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium (Debian's package of that name)")

LAST = (1 << 64) - 1
IDS = "#rows td.id"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield one browser for all tests: it takes seconds to start."""
    with Browser() as browser:
        yield browser


def page_of(source: Path) -> bytes:
    """Return the page of a bundle."""
    with open_bundle(source) as stream:
        return report_page(stream, source.name)


def drawn(browser: Browser, source: Path, fragment: str = "") -> Page:
    """Return the opened page of a bundle, which has logged nothing on the console and fetched nothing."""
    path = source.with_suffix(".html")
    path.write_bytes(page_of(source))
    page = browser.open(path, fragment)
    assert page.complaints() == []
    return page


def session(limits: Constraints | None = None, graph: str = "g") -> CapturingSession:
    """Return a session whose episodes all complete."""
    return CapturingSession(graph, limits or Constraints(), MemoryDecisionLog(), FaultRuntime(), "rpv1:none")


def at(event_id: str, secs: int, payload: bytes = b"", nanos: int = 0, kind: str = "Command") -> ExternalEvent:
    """Return an event at a time."""
    return ExternalEvent.with_payload(event_id, ExternalEventKind[kind], EventTime(secs, nanos), payload)


def kept(run: CapturingSession, path: Path) -> Path:
    """Write the session's bundle to a file and return its path."""
    path.write_bytes(encode_bundle(run.into_bundle()))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return the bundle of a small run: e4 is tried twice, e6 has an effect, e8 is a Pump."""
    return bundle(tmp_path / "small.json", effects=True)


def painted(page: Page, chart: str, colour: str) -> int:
    """Return how many points of a chart have one of the page's colours, within a step or two."""
    found: int = page.value(
        f"""(() => {{
        const canvas = document.querySelector({json.dumps(chart + " canvas")}), wanted = css({json.dumps(colour)});
        const rgb = [1, 3, 5].map((n) => parseInt(wanted.slice(n, n + 2), 16));
        const {{ data }} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let found = 0;
        for (let i = 0; i < data.length; i += 4) found += rgb.every((c, n) => Math.abs(c - data[i + n]) < 3);
        return found; }})()"""
    )
    return found


def test_the_page_draws_episodes_that_ran_failed_and_waited(browser: Browser, tmp_path: Path) -> None:
    """Each chart has points in the colours for them."""
    ends = {"e0": [RunTermination.TimedOut, RunTermination.Aborted]}
    limits = Constraints(max_per_window=5, rate_window=EventTime(60, 0), max_retries=1)
    run = CapturingSession("g", limits, MemoryDecisionLog(), FaultRuntime(schedule=ends), "rpv1:none")
    for number in range(20):
        run.on_event(at(f"e{number}", number, kind="Command"))
    run.on_event(at("pump", 61, kind="Pump"))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    for chart, colours in {
        "#bars": ["--ran", "--deferred", "--pumped"],
        "#marks": ["--again", "--bad"],
        "#waits": ["--deferred", "--bad"],
    }.items():
        for colour in colours:
            assert painted(page, chart, colour) > 10, (chart, colour)
    assert page.texts("figcaption")[2] == "Deferred episodes, from event to run; 14 never ran (red, open to the right)"


def test_the_page_names_its_bundle(browser: Browser, small: Path) -> None:
    """Graph, file, limits, and the counts of the run."""
    page = drawn(browser, small)
    assert page.texts("h1") == ["Graph g"]
    assert page.value("document.title") == "g: small.json"
    assert "max_per_window 3, rate_window 10 s, max_retries 2" in page.texts("#about dd")
    facts = dict(zip(page.texts(".fact span"), page.texts(".fact b"), strict=True))
    assert (facts["events"], facts["event time"], facts["retries"], facts["effects"]) == ("10", "36 s", "1", "1")


def test_every_event_has_a_row_with_its_decision(browser: Browser, small: Path) -> None:
    """The rows are in the order of the bundle."""
    page = drawn(browser, small)
    assert page.texts(IDS) == [f"e{number}" for number in range(10)]
    row = page.texts("#event-4 td")
    assert row == ["4", "16 s", "Command", "e4", "run at once", "4", "", "Completed", "1", ""]


@pytest.mark.parametrize(
    ("fragment", "ids"),
    [
        ("#search=E4", ["e4"]),
        ("#search=%22n%22:%205", ["e5"]),
        ("#search=Number", ["e6"]),
        ("#search=nothing-like-it", []),
        ("#kind=Pump", ["e8"]),
        ("#decision=Invoke&kind=Pump", []),
        ("#termination=Completed&search=e9", ["e9"]),
        ("#retried=yes", ["e4"]),
    ],
)
def test_a_filter_in_the_address_selects_rows(browser: Browser, small: Path, fragment: str, ids: list[str]) -> None:
    """The filters are id, payload, effects, kind, decision, termination and retries."""
    page = drawn(browser, small, fragment)
    assert page.texts(IDS) == ids
    page.close()


def test_a_search_is_kept_in_the_address(browser: Browser, small: Path) -> None:
    """A view can thus be passed on as a link."""
    page = drawn(browser, small)
    page.value("document.querySelector('#search').focus()")
    page.say("Input.insertText", text="e7")
    assert page.texts(IDS) == ["e7"]
    assert page.texts("#count") == ["1 of 10 events with their decisions"]
    assert page.value("location.hash") == "#search=e7"
    page.click("#all")
    assert len(page.texts(IDS)) == 10
    assert page.value("location.hash") == ""


def test_a_change_of_the_address_changes_the_view(browser: Browser, small: Path) -> None:
    """A link may be followed within the page's tab."""
    page = drawn(browser, small)
    page.value("void (location.hash = '#kind=Pump')")
    page.wait("document.querySelectorAll('#rows tr').length === 1")
    assert page.texts(IDS) == ["e8"]


def test_a_count_links_to_the_events_that_it_counts(browser: Browser, small: Path) -> None:
    """The count ``retries`` selects the event that was tried again."""
    page = drawn(browser, small)
    page.value("[...document.querySelectorAll('button.fact')].find(e => e.textContent.startsWith('retries')).click()")
    assert page.texts(IDS) == ["e4"]


def test_a_row_opens_to_its_payload_as_sent(browser: Browser, tmp_path: Path) -> None:
    """Byte for byte, numbers and spaces too; a second click closes it."""
    run, payload = session(), b'{ "n": 1.0,  "big": 12345678901234567890 }'
    run.on_event(at("e0", 0, payload))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    assert page.texts("tr.more") == []
    page.click("#event-0")
    assert page.texts("tr.more pre") == [payload.decode()]
    assert f"{len(payload)} bytes" in page.texts("tr.more dd")
    page.click("#event-0")
    assert page.texts("tr.more") == []


def test_a_row_opens_to_its_time_as_on_the_axes(browser: Browser, tmp_path: Path) -> None:
    """Seconds alone do not show where in a chart of days it is."""
    run = session()
    run.on_event(at("e0", 3 * 86_400 + 5 * 3_600 + 17 * 60 + 9))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    page.click("#event-0")
    assert "day 3 05:17:09" in page.texts("tr.more dd")


def test_a_deferred_event_and_its_run_link_to_each_other(browser: Browser, tmp_path: Path) -> None:
    """The link shows the time between them."""
    run = session(Constraints(max_per_window=1, rate_window=EventTime(60, 0)))
    for event in (at("first", 0), at("late", 10), at("pump", 90, kind="Pump")):
        run.on_event(event)
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    page.click("#event-1")
    assert "pump after 1 min 20 s" in page.texts("tr.more dd")
    assert "60 s" in page.texts("tr.more dd")
    page.click("tr.more .link")
    assert page.value("document.activeElement.id") == "event-2"
    assert "late deferred 1 min 20 s before" in page.texts("tr.more dd")


def test_a_column_sorts_in_both_directions(browser: Browser, small: Path) -> None:
    """Numbers from the largest, text from the first."""
    page = drawn(browser, small)
    page.value("document.querySelectorAll('#head button')[8].click()")
    assert page.texts(IDS)[0] == "e4"
    page.value("document.querySelectorAll('#head button')[3].click()")
    page.value("document.querySelectorAll('#head button')[3].click()")
    assert page.texts(IDS)[0] == "e9"
    assert page.value("document.querySelectorAll('#head th')[3].getAttribute('aria-sort')") == "descending"


def test_dragging_across_a_chart_shows_that_part_and_its_rows(browser: Browser, tmp_path: Path) -> None:
    """The button goes back to the whole run."""
    run = session()
    for number in range(100):
        run.on_event(at(f"e{number}", number * 10))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    page.drag("#bars .u-over", 0.5, 0.7)
    page.wait("!document.querySelector('#whole').disabled")
    places = [int(event_id[1:]) for event_id in page.texts(IDS)]
    assert 15 <= len(places) <= 25
    assert 45 <= places[0] <= 55
    page.click("#whole")
    assert len(page.texts(IDS)) == 100


def test_a_click_into_a_chart_opens_the_event_at_that_point(browser: Browser, tmp_path: Path) -> None:
    """It is opened in the table, on any of its pages."""
    run = session()
    for number in range(1_000):
        run.on_event(at(f"e{number}", number))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    page.drag("#bars .u-over", 0.75, 0.75)
    (opened,) = page.texts("tr[aria-expanded=true] td.id")
    assert 740 <= int(opened[1:]) <= 770
    assert page.texts("#page") == ["page 8 of 10"]


@pytest.mark.parametrize("by", ["kind", "termination"])
def test_the_bars_can_be_coloured_by_another_property(browser: Browser, small: Path, by: str) -> None:
    """The legend names its values."""
    page = drawn(browser, small)
    page.value(f"(() => {{ const e = $('by'); e.value = '{by}'; e.dispatchEvent(new Event('input')); }})()")
    names = {"kind": {"Command", "Pump"}, "termination": {"Completed", "no run"}}[by]
    assert set(page.texts("#bars .u-label")[1:]) == names
    assert page.complaints() == []


def test_ids_and_payloads_are_shown_as_text_only(browser: Browser, tmp_path: Path) -> None:
    """A hostile id neither ends the script nor becomes markup."""
    hostile = [
        "</script><script>document.body.dataset.error='x'</script>",
        "<img src=x onerror=alert(1)>",
        "/*DATA*/",
        "__proto__",
    ]
    run = session(graph="<b>g</b>")
    for event_id in hostile:
        run.on_event(at(event_id, 0, b'{"a":"</script><b>"}'))
    page = drawn(browser, kept(run, tmp_path / "<i>a.json"))
    assert page.texts(IDS) == hostile
    assert page.texts("h1") == ["Graph <b>g</b>"]
    page.click("#event-1")
    assert page.texts("tr.more pre") == ['{"a":"</script><b>"}']
    assert page.value("document.querySelectorAll('img, b b, i').length") == 0


def test_a_script_that_is_not_the_pages_own_does_not_run(browser: Browser, small: Path) -> None:
    """The policy knows the page's scripts by their hashes."""
    page = drawn(browser, small)
    page.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.taken = 1'; document.body.append(s); })()"
    )
    assert page.value("window.taken") is None


def test_the_page_cannot_connect_anywhere(browser: Browser, small: Path) -> None:
    """Its policy refuses every connection, even of its own script."""
    page = drawn(browser, small)
    refused = page.value("fetch('data:,x').then(() => false, () => true)")
    assert refused


@pytest.mark.parametrize("count", [0, 1])
def test_a_bundle_of_no_or_one_event_is_drawn(browser: Browser, tmp_path: Path, count: int) -> None:
    """The charts must not divide by zero."""
    run = session()
    for number in range(count):
        run.on_event(at(f"e{number}", 5))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    assert len(page.texts(IDS)) == count
    assert (
        page.texts("section > p.soft")[0]
        == ("Drag" if count else "The bundle holds no events.")[: None if not count else 4]
        or count
    )


def test_a_run_of_deferrals_only_is_shown_as_such(browser: Browser, tmp_path: Path) -> None:
    """The page says that nothing ran, and draws the waits to the end."""
    run = session(Constraints(max_in_flight=0))
    for number in range(50):
        run.on_event(at(f"e{number}", number))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    assert page.texts("#marks") == ["Nothing ran."]
    assert "50 never ran" in page.texts("#waits-title")[0]
    assert painted(page, "#waits", "--bad") > 1_000


def test_numbers_and_times_are_shown_to_the_last_digit(browser: Browser, tmp_path: Path) -> None:
    """Unsigned 64-bit integers are more than JavaScript's numbers can hold."""

    def change(data: dict[str, list[dict[str, object]]]) -> None:
        data["decisions"][9]["episode_id"] = LAST
        data["events"][9]["event_time"] = {"secs": LAST, "nanos": 1}

    page = drawn(browser, bundle(tmp_path / "a.json", change))
    row = page.texts("#event-9 td")
    assert row[1] == f"{LAST}.000000001 s"
    assert row[5] == str(LAST)


def test_events_a_nanosecond_apart_are_drawn_and_can_be_zoomed(browser: Browser, tmp_path: Path) -> None:
    """JavaScript's numbers do not resolve nanoseconds at today's dates; the page draws all the same."""
    run = session()
    for number in range(20):
        run.on_event(at(f"e{number}", 1_700_000_000, nanos=number))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    for _ in range(5):
        page.drag("#bars .u-over", 0.4, 0.6)
        page.wait("!document.querySelector('#whole').disabled")
    page.click("#all")
    assert page.texts("#event-19 td")[1] == "2023-11-14 22:13:20.000000019 UTC"
    assert page.complaints() == []


def test_event_times_that_are_dates_are_shown_as_dates(browser: Browser, tmp_path: Path) -> None:
    """Dates are in UTC, whatever the browser's time zone."""
    run = session()
    run.on_event(at("e0", 1_357_017_420))
    run.on_event(at("e1", 1_357_103_820))
    path = kept(run, tmp_path / "a.json")
    page = drawn(browser, path)
    page.say("Emulation.setTimezoneOverride", timezoneId="Asia/Kolkata")
    page.say("Page.reload")
    page.wait("document.body && document.body.dataset.ready")
    assert page.texts("#event-0 td")[1] == "2013-01-01 05:17:00 UTC"


def test_one_event_at_time_0_leaves_the_others_their_dates(browser: Browser, tmp_path: Path) -> None:
    """It is shown as the beginning of 1970; a time after the year 9999 as seconds."""
    run = session()
    for number, secs in enumerate((0, 1_704_067_200, 1_704_067_260, 1_704_067_320, 1_704_067_380, 1 << 62)):
        run.on_event(at(f"e{number}", secs))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    times = [page.texts(f"#event-{number} td")[1] for number in (0, 1, 5)]
    assert times == ["1970-01-01 00:00:00 UTC", "2024-01-01 00:00:00 UTC", f"{1 << 62} s"]


@pytest.mark.parametrize("waiting", [1, 2, 4, 5, 9])
def test_the_label_of_the_waiting_episodes_fits_the_chart(browser: Browser, tmp_path: Path, waiting: int) -> None:
    """The chart is low if few episodes waited at once."""
    run = session(Constraints(max_per_window=1, rate_window=EventTime(60, 0)))
    for number in range(waiting + 1):
        run.on_event(at(f"e{number}", number))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    page.value(
        """(() => {
        const fillText = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...more) {
            if (text.startsWith("waiting")) window.labelled = this.measureText(text).width / devicePixelRatio;
            return fillText.call(this, text, ...more);
        };
        dispatchEvent(new Event("beforeprint")); })()"""
    )
    length = page.wait("window.labelled")
    room = page.value("document.querySelector('#waits .u-over').clientHeight")
    assert length <= room


@pytest.mark.parametrize("width", [320, 500, 1280])
def test_nothing_is_wider_than_the_page(browser: Browser, small: Path, width: int) -> None:
    """Only the table scrolls sideways, within its own box."""
    page = small.with_name("page.html")
    page.write_bytes(page_of(small))
    tab = browser.open(page, width=width)
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.complaints() == []


def test_the_legend_shows_values_only_under_the_pointer(browser: Browser, tmp_path: Path) -> None:
    """Likewise the time that they belong to."""
    run = session()
    for number in range(100):
        run.on_event(at(f"e{number}", number * 10))
    page = drawn(browser, kept(run, tmp_path / "a.json"))
    shown = "getComputedStyle(document.querySelector('.u-legend .u-series')).visibility"
    assert page.value(shown) == "hidden"
    page.hover("#bars .u-over", 0.5)
    page.wait(f"{shown} === 'visible'")


def test_a_dark_page_is_printed_on_white(browser: Browser, small: Path) -> None:
    """Its charts too."""
    page = drawn(browser, small)
    page.say("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = page.wait("css('--ink') === '#e6edf3' && css('--ink')")
    page.value("dispatchEvent(new Event('beforeprint'))")
    assert page.value("css('--ink')") != dark
    assert painted(page, "#bars", "--ran") > 100
    page.value("dispatchEvent(new Event('afterprint'))")
    assert page.value("css('--ink')") == dark
    assert base64.b64decode(page.say("Page.printToPDF")["data"]).startswith(b"%PDF")


def test_a_page_of_thirty_thousand_events_is_small_and_is_drawn(browser: Browser, tmp_path: Path) -> None:
    """It stays below a few megabytes, and shows a hundred rows at a time."""
    run = session(Constraints(max_per_window=20, rate_window=EventTime(60, 0)))
    for number in range(30_000):
        pump = number % 10 == 9
        payload = b'{"flight":%d,"origin":"EWR","dest":"IAH","delay":%d}' % (number * 7919 % 10_007, number % 91)
        run.on_event(at(f"e{number}", number * 2, b"" if pump else payload, kind="Pump" if pump else "DataAvailable"))
    source = kept(run, tmp_path / "a.json")
    page = drawn(browser, source)
    assert source.with_suffix(".html").stat().st_size < 1_500_000
    assert len(page.texts(IDS)) == 100
    assert page.texts("#count") == ["30,000 of 30,000 events with their decisions"]
    page.click("#on")
    assert page.texts(IDS)[0] == "e100"


def test_the_page_loads_nothing(small: Path) -> None:
    """It has no src, link or import, and its policy forbids every connection."""
    text = page_of(small).decode()
    assert "default-src 'none'" in text
    assert "unsafe" not in text[: text.index("<style>")]
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|@import|url\(", text)
