"""Charts: a long tail has one bar."""

from ingest.pages.charts import charts_of
from ingest.pages.survey import Survey


def test_a_long_tail_falls_into_the_last_bar() -> None:
    survey = Survey(kept=10, seconds=16.0)
    survey.clips_per_item.update({1: 500, 2: 300, 64: 195, 5000: 5})
    chart = charts_of(survey)[0]
    assert [bar.name for bar in chart.bars] == ["1 to 2 clips: 800 items", "63 to 5000 clips: 200 items"]
    assert chart.label == "clips kept of an item, 1.6 s each"
    assert chart.top == "800 items"
    assert chart.bars[0].height == 90


def test_nothing_known_is_no_chart() -> None:
    assert charts_of(Survey()) == []
