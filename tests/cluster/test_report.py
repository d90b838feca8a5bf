import base64
import re

import pytest

from cluster.report import Picture, Table, Text, Video, write_report


def test_page_holds_every_part_in_order_and_escapes_it(tmp_path):
    parts = [
        Text(text="5 < 24 & rising", heading="In words"),
        Table(header=["scenario", "m"], rows=[["<b>", 0.12345], ["c", 2]], marks=["good", "bad"]),
        Picture(png=b"\x89PNG bytes", heading="In a picture"),
        Video(source="videos/a.mp4"),
    ]
    write_report(tmp_path / "report.html", "A run", parts)
    page = (tmp_path / "report.html").read_text()
    places = [page.index(word) for word in ("5 &lt; 24 &amp;", "&lt;b&gt;", "base64,", "a.mp4")]
    assert places == sorted(places)
    assert "0.123<" in page
    assert page.index('class="good"') < page.index('class="bad"')
    stored = re.search(r"base64,([^\"]*)", page)
    assert stored is not None
    assert base64.b64decode(stored[1]) == b"\x89PNG bytes"


def test_uneven_tables_are_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Table(header=["a", "b"], rows=[["x"]])
    with pytest.raises(ValueError, match="marks"):
        Table(header=["a"], rows=[["x"]], marks=["good", "bad"])
