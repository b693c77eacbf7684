"What the figures of statistics write: no p-value of 0, and no names of variables."

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from xmodal.evaluation.statistics import compare, forest_plot, paired_plot


def test_no_p_is_zero_and_axes_speak():
    rng, rows = np.random.default_rng(0), []
    for i in range(16):
        at = rng.normal(20, 2)
        rows += [dict(subject=str(i), method='ours', psnr_brain=at)]
        rows += [dict(subject=str(i), method='theirs', psnr_brain=at - 3 - rng.random())]
    table = pd.DataFrame(rows)
    ax = forest_plot(compare(table, 'psnr_brain', 'ours'))
    texts = [t.get_text() for t in ax.texts]
    assert any(t.startswith('p < 0.001') for t in texts) and not any('0.000' in t for t in texts)
    assert ax.get_xlabel().startswith('PSNR brain, dB: difference from ours')
    axes = paired_plot(table, 'psnr_brain', 'ours')
    assert axes.get_ylabel() == 'PSNR brain, dB,\nless ours'
    axes.figure.canvas.draw()
    height = axes.yaxis.label.get_window_extent().height
    assert height < axes.get_window_extent().height
    plt.close('all')
