"""The book's one figure style: a tidy frame in, `Axes` out."""

from nbhelpers.plots.curves import (
    behind_encoder,
    by_depth,
    by_parameter,
    depth_bar,
    per_model,
    published_by_depth,
    spectra,
)
from nbhelpers.plots.figure import (
    STYLES,
    download,
    legend_below,
    line_style,
    line_styles,
    metric_label,
    note,
    panels,
    style,
    title,
)
from nbhelpers.plots.pictures import gallery, head_maps, query_maps, token_map, token_steps
