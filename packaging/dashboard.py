"""Write the Grafana dashboard: `make dashboard` writes packaging/grafana/tunnelmgr.json.

panels.py describes the panels in plain values. They are made by Grafana's own library, which knows the schema.
"""

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from panels import FIGURES, ROWS, Figure, Panel, Query

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
"""Columns of Grafana's grid."""
GOOD, BAD = "green", "red"


def target(number: int, query: Query) -> prometheus.Dataquery:
    """Return a query of a panel."""
    made = prometheus.Dataquery().expr(query.expression).legend_format(query.legend)
    return made.ref_id(chr(ord("A") + number)).datasource(SOURCE).exemplar(query.exemplars)


def lines(panel: Panel) -> timeseries.Panel:
    """Return a panel with lines over time."""
    stacking = common_models.StackingMode.NORMAL if panel.stacked else common_models.StackingMode.NONE
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .fill_opacity(30 if panel.stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .stacking(common.StackingConfig().mode(stacking))
        .legend(common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .span(WIDTH // 3)
        .height(8)
    )
    for number, query in enumerate(panel.queries):
        made.with_target(target(number, query))
    return made


def number(figure: Figure) -> stat.Panel:
    """Return a panel with one number, green or red."""
    steps = [models.Threshold(value=None, color=GOOD)]
    if figure.bad is not None:
        steps.append(models.Threshold(value=figure.bad, color=BAD))
    if figure.good is not None:
        steps = [models.Threshold(value=None, color=BAD), models.Threshold(value=figure.good, color=GOOD)]
    return (
        stat.Panel()
        .title(figure.title)
        .description(figure.description)
        .datasource(SOURCE)
        .unit(figure.unit)
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .span(WIDTH // len(FIGURES))
        .height(4)
        .with_target(target(0, figure.query).instant())
    )


def selection(name: str, label: str, metric: str) -> dashboard.QueryVariable:
    """Return a menu of a label's values, all of which are selected at first."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({metric}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def build() -> models.Dashboard:
    """Return the dashboard."""
    made = (
        dashboard.Dashboard("tunnelmgr")
        .uid("tunnelmgr")
        .description("Tunnels to build agents, and the registry behind them. docs/operations.md explains each metric.")
        .tags(["tunnelmgr"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone(common_models.TimeZoneBrowser)
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(selection("instance", "Controller", "tunnelmgr_build_info"))
        .with_variable(selection("group", "Group", "tunnelmgr_agents"))
    )
    for figure in FIGURES:
        made.with_panel(number(figure))
    for title, panels in ROWS.items():
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(lines(panel))
    result = made.build()
    for id_, each in enumerate(result.panels or [], 1):
        each.id_val = id_
    return result


def main() -> None:
    """Write the dashboard into the file that the command line names."""
    (file,) = sys.argv[1:]
    Path(file).write_text(f"{JSONEncoder(sort_keys=True, indent=2).encode(build())}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
