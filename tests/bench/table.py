"""Runs a benchmark and shows its rows. A benchmark is bench_NAME.py with a function rows() that yields row(…)s."""

import importlib
import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1])]


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def row(what, unit, values, peer=None, peer_name=None):
    """ours and peer: the medians of what was measured in this run. ratio above 1 where we are better (less time or memory,
    more of a rate); none where ours is too little to be measured."""
    ours = quantile(values, 0.5)
    theirs = quantile(peer, 0.5) if peer else None
    better, worse = (ours, theirs) if unit == "MB/s" else (theirs, ours)
    ratio = None if theirs is None or worse <= 0 else better / worse
    return {"what": what, "unit": unit, "ours": ours, "peer": theirs, "peer_name": peer_name, "ratio": ratio,
            "p50": ours, "p95": quantile(values, 0.95), "p99": quantile(values, 0.99), "n": len(values)}


def show(found):
    figure = lambda x: "-" if x is None else f"{x:.2f}" if abs(x) < 1000 else f"{x:,.0f}"
    print(f"{'what':52} {'unit':6} {'ours':>10} {'p95':>10} {'p99':>10} {'peer':>10} {'ratio':>7} {'n':>6}  peer")
    for r in found:
        print(f"{r['what']:52} {r['unit']:6} {figure(r['ours']):>10} {figure(r['p95']):>10} {figure(r['p99']):>10} "
              f"{figure(r['peer']):>10} {figure(r['ratio']):>7} {r['n']:>6}  {r['peer_name'] or ''}")


def main(name, as_json):
    found = list(importlib.import_module(f"bench_{name}").rows())
    if as_json == "yes":
        print(json.dumps({"bench": name, "rows": found}))
    else:
        show(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
