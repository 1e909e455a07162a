"""Claims, tables, captions: what a reader of a page and a test of a notebook get."""
import re

import matplotlib
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt

from conftest import MEASURED
from pdae_lite import viz
from pdae_lite.metrics.intervals import Estimate


def shown(call):
    """The outputs of a call, each as its mime bundle."""
    InteractiveShell.instance()
    with capture_output() as captured:
        call()
    return [o.data for o in captured.outputs]


def test_a_claim_shows_its_sentence_and_what_was_measured():
    (data,) = shown(lambda: viz.claim("z at least halves the error", True, 0.4321))
    assert data["text/plain"] == "✓ z at least halves the error [0.432]"
    assert 'z at least halves the error <span class="measured">(0.432)</span>' in data["text/html"]


def test_a_false_claim_stops_its_cell_and_says_what_was_measured():
    with pytest.raises(AssertionError, match=r"z at least halves the error: does not hold \(0.6 of it\)"):
        viz.claim("z at least halves the error", 0.6 < 0.5, "0.6 of it")


@pytest.mark.parametrize("kind", ["text/plain", "text/html"])
def test_what_was_measured_is_not_compared_and_the_sentence_is(kind):
    def compared(sentence, measured):
        (data,) = shown(lambda: viz.claim(sentence, True, measured))
        text = data[kind]
        for pattern, replacement in MEASURED.items():
            text = re.sub(pattern, replacement, text)
        return text

    assert compared("a < b", 1.5) == compared("a < b", "2 of 3") == compared("a < b", None) != compared("a < c", 1.5)


def test_a_table_is_bold_only_beyond_the_intervals():
    rows = [("PDAE", Estimate(0.10, 0.08, 0.12, (9,)), Estimate(0.7, 0.5, 0.9, (9,))),
            ("Diff-AE", Estimate(0.2, 0.15, 0.25, (9,)), 0.6),
            ("DPM", Estimate(0.3, 0.24, 0.36, (9,)), Estimate(0.8, 0.6, 0.95, (9,)))]
    table = viz.table(rows, ["method", "MSE", "share"], caption="Errors", units={"MSE": "↓"},
                      best={"MSE": "low", "share": "high"})
    assert table.html.count("<strong>") == 1 and "<strong>0.100 ± 0.020</strong>" in table.html
    assert "<caption>Errors</caption>" in table.html and "MSE<br><small>↓</small>" in table.html
    assert table.text.splitlines()[1].split("  ")[0] == "method" and "0.100 ± 0.020" in table.text


def test_a_table_opens_seven_rows():
    table = viz.table([(str(i), i) for i in range(9)], ["n", "value"], caption="Nine")
    opened, folded = table.html.split("<details>")
    assert opened.count("<tr>") == 1 + 7 and folded.count("<tr>") == 1 + 2 and "2 more rows" in folded


def test_a_table_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 entries"):
        viz.table([("a",)], ["n", "value"], caption="c")
    with pytest.raises(ValueError, match="no column.*kid"):
        viz.table([("a", 1)], ["n", "value"], caption="c", best={"kid": "low"})


def test_numbers():
    assert [viz.number(v) for v in (0.12345, 12.345, 1234.5, 7, -0.5, None, "x", 20000)] == [
        "0.123", "12.3", "1,234", "7", "−0.500", "–", "x", "20,000"]


def test_a_caption_comes_after_its_figure():
    matplotlib.use("agg")
    plt.close("all")
    figure, curve = shown(lambda: viz.curves([0, 1], {"pdae": [0, 1]}, caption="A line <up>"))
    assert "Figure" in figure["text/plain"] and "A line &lt;up&gt;" in curve["text/html"] and not plt.get_fignums()
    assert "image/png" in figure or "text/plain" in figure
    assert "A fade" in viz.slider([plt.figure()], ["x"], id="a", label="b", alt="c", caption="A fade").html


def test_the_source_shown_is_the_librarys():
    (data,) = shown(lambda: viz.source(viz.say))
    assert "def say(markdown: str)" in data["text/markdown"] and '"""' not in data["text/markdown"]
