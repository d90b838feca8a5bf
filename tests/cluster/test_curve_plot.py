import io

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from cluster.curve_plot import Panel, draw_curves


def share_of(colour, picture):
    """Return which share of the pixels has a colour of matplotlib's."""
    wanted = 255 * np.array(to_rgb(colour))
    return (np.abs(picture - wanted).max(axis=-1) < 2).mean()


def test_a_curve_has_one_colour_in_all_panels():
    flat = np.zeros(10)
    both = Panel(title="both", label="x", curves={"floor": flat, "model": flat + 1})
    one = Panel(title="one", label="x", curves={"model": flat})
    with Image.open(io.BytesIO(draw_curves([both, one]))) as image:
        left, right = np.split(np.asarray(image.convert("RGB"), float), [image.width // 2], axis=1)
    assert min(share_of("C0", left), share_of("C1", left), share_of("C1", right)) > 0.0005
    assert share_of("C0", right) == 0
