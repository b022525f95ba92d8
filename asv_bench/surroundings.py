"""A plugin of asv: beside each plot are machine, versions, and how far samples lie apart.

`asv publish` calls it. It writes `surroundings.json` and a script that shows it into the HTML.
"""

import statistics
from pathlib import Path

from asv import util
from asv.machine import iter_machine_files
from asv.publishing import OutputPublisher
from asv.results import iter_results

SHOWN_OF_A_MACHINE = ("machine", "cpu", "num_cpu", "ram", "os", "arch")
SHOWN_OF_A_RUN = ("python", "numpy", "numba")

SCRIPT = Path(__file__).with_suffix(".js")


class Surroundings(OutputPublisher):
    """Not a page of its own: an addition to the page of each plot."""

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        """Write what the script shows, and have the page load it."""
        html = Path(conf.html_dir)
        util.write_json(str(html / "surroundings.json"), describe(conf, benchmarks), compact=True)
        (html / SCRIPT.name).write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
        index = html / "index.html"
        page = index.read_text(encoding="utf-8")
        tag = f'<script src="{SCRIPT.name}"></script>'
        index.write_text(page.replace("</head>", f"  {tag}\n  </head>"), encoding="utf-8")


def describe(conf, benchmarks):
    """Return what each machine is, what ran on it, and the spread of each benchmark's samples."""
    machines = [util.load_json(path) for path in iter_machine_files(conf.results_dir)]
    runs, spreads = {}, {}
    for result in sorted(iter_results(conf.results_dir), key=lambda each: each.date):
        versions = {name: result.params.get(name) or "latest" for name in SHOWN_OF_A_RUN}
        runs.setdefault(result.params["machine"], {})[result.env_name] = versions
        for name in result.get_result_keys(benchmarks):
            found = spread(result, name, benchmarks[name]["params"])
            if found is not None:
                spreads[name] = found  # of the newest commit that has one
    return {
        "machines": [
            {key: each.get(key, "") for key in SHOWN_OF_A_MACHINE}
            | {"runs": list(runs.get(each["machine"], {}).values())}
            for each in machines
        ],
        "spreads": spreads,
    }


def spread(result, name, params):
    """Return half of the interquartile range over the median: the median over all parameters."""
    shares = []
    for value, stats in zip(
        result.get_result_value(name, params), result.get_result_stats(name, params), strict=True
    ):
        if value and stats and stats.get("repeat", 1) > 1:
            shares.append((stats["q_75"] - stats["q_25"]) / 2 / value)
    return statistics.median(shares) if shares else None
