"""Every network of the zoo: compressed, reloaded, exported and compared, one process a network.

``python bench/experiments/zoo.py --out bench/results/zoo.jsonl`` builds each with random weights (norms drawn at random
too, so that outputs are alive), prunes it to 0.6 of its multiply-accumulates, checks that the plan alone gives the same
weights as the dependency graph, writes and reads back the bundle bit for bit, exports ONNX with a dynamic batch and
compares it with torch at batches 1 and 3. A network in the file already is not run again; ``--summary FILE`` writes the
table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pruneport.bench.devices import available_cores
from pruneport.bench.experiments.networks.all_the_way import compress_one
from pruneport.bench.experiments.networks.zoo import NETWORKS, family
from pruneport.files import write_whole

__all__ = ["main"]

_ENDING_S = 30


def main() -> None:
    """Run what is not in the file yet; one JSON line a network, written when it is done."""
    parser = argparse.ArgumentParser(description="Compress every network of the zoo.")
    parser.add_argument("--out", type=Path, help="JSON lines; appended to")
    parser.add_argument("--networks", nargs="+", help=f"sources, or of {', '.join(NETWORKS)}", default=list(NETWORKS))
    parser.add_argument("--timeout", type=float, default=900, help="seconds a network")
    parser.add_argument("--memory", type=float, default=16, help="GiB for all that runs at once")
    parser.add_argument("--jobs", type=int, default=2, help="networks at once")
    parser.add_argument("--summary", type=Path, help="write a table of the results here")
    arguments = parser.parse_args()
    if arguments.out is None:
        parser.error("--out FILE is needed")
    done = _read(arguments.out)
    specs = [spec for name in arguments.networks for spec in NETWORKS.get(name, [name])]
    waiting = [spec for spec in specs if spec not in done]
    for number, row in enumerate(_rows(waiting, arguments.jobs, arguments.timeout, arguments.memory), start=1):
        done[row["network"]] = row
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        said = f"{row['network']}: {row['outcome']} ({row['seconds']:.0f} s) {row.get('error', '')}"
        print(f"{number}/{len(waiting)} {said}"[:240], flush=True)
    if arguments.summary:
        write_whole(arguments.summary, _summary([done[spec] for spec in specs if spec in done]))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file, by network."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def _rows(specs: Sequence[str], jobs: int, timeout: float, memory: float) -> Iterator[dict[str, Any]]:
    """Yield rows as they come; networks that ran out of memory are run again, alone and with all of it."""
    alone: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_in_process, spec, timeout, memory / jobs, jobs) for spec in specs]):
            row = done.result()
            if row["outcome"] == "crashed" and jobs > 1:
                alone.append(row["network"])
            else:
                yield row
    for spec in alone:
        yield _in_process(spec, timeout, memory, 1)


def _in_process(spec: str, timeout: float, memory: float, jobs: int) -> dict[str, Any]:
    """Run one network in a process of its own, forked from one that has only imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pruneport.bench.experiments.zoo", "onnxscript"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, spec, memory, max(1, available_cores() // jobs)))
    start = time.monotonic()
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            row: dict[str, Any] = receiver.recv()
            process.join(_ENDING_S)
        else:
            row = {"outcome": "timeout", "error": f"not done within {timeout:.0f} s"}
    except EOFError:
        process.join()
        row = {"outcome": "crashed", "error": f"ended with {process.exitcode}"}
    process.kill()
    process.join()
    return {"network": spec, "family": family(spec), "seconds": round(time.monotonic() - start, 1)} | row


def _send(sender: Connection, spec: str, memory: float, threads: int) -> None:
    """Run one network within its memory and threads, and send the row to the process that waits for it."""
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    try:
        sender.send(compress_one(spec))
    except Exception as error:  # whatever a network brings, the sweep goes on and says it
        sender.send({"outcome": "crashed", "error": f"{type(error).__name__}: {error}"[:400]})


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table by library and family, and every network that was not compressed, with its error."""
    by_family: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_family[row["network"].split(":")[0], row["family"]].append(row)
    lines = ["| library | family | networks | ok | removal error, at most | parity error, at most |"]
    lines += ["|---|---|---|---|---|---|"]
    for (library, name), members in sorted(by_family.items()):
        good = [row for row in members if row["outcome"] == "ok"]
        removal = max((row["masked_error"] or 0 for row in good), default=0)
        parity = max((row["parity_error"] for row in good), default=0)
        lines.append(f"| {library} | {name} | {len(members)} | {len(good)} | {removal:.1e} | {parity:.1e} |")
    totals = Counter(row["network"].split(":")[0] for row in rows)
    passed = Counter(row["network"].split(":")[0] for row in rows if row["outcome"] == "ok")
    head = [f"{library}: {passed[library]} of {total} networks." for library, total in sorted(totals.items())]
    listed = sum(map(len, NETWORKS.values()))
    head.append(f"{listed} are listed in `bench/experiments/networks/zoo.py`; those without a row were not run yet.")
    failed = [
        f"- `{row['network']}` ({row['outcome']}): {row.get('error', '')[:300]}"
        for row in rows
        if row["outcome"] != "ok"
    ]
    return "\n".join(
        ["# The zoo", "", *head, "", *lines, "", *(["Did not go the whole way:", ""] if failed else []), *failed, ""]
    )


if __name__ == "__main__":
    main()
