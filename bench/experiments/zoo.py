"""Every network of the zoo: compressed, reloaded, exported and compared, one process a network.

``python bench/experiments/zoo.py --out bench/results/zoo.jsonl`` builds each with random weights (norms drawn at random
too, so that outputs are alive), prunes it to 0.6 of its multiply-accumulates, checks that the plan alone gives the same
weights as the dependency graph, writes and reads back the bundle bit for bit, exports ONNX with a dynamic batch and
compares it with torch at batches 1 and 3. A network in the file already is not run again; ``--summary FILE`` writes the
table.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.bench.devices import available_cores, latency_versions
from pruneport.bench.experiments.networks.zoo import NETWORKS, family, input_size
from pruneport.compress.graph.coupling import find_coupling
from pruneport.compress.graph.groups import group_units
from pruneport.compress.graph.module_attributes import rescale_keys
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.structure import example_inputs
from pruneport.compress.surgery.apply import apply_plan
from pruneport.errors import InputError, ParityError, PruneportError
from pruneport.export.bundle.weights import check_reload, write_network
from pruneport.export.cpu_session import open_cpu_session
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.parity import check_seeded
from pruneport.files import write_whole
from pruneport.models.options import SourceOptions
from pruneport.models.outputs import tensor_leaves
from pruneport.models.record import Source
from pruneport.models.source import open_source

__all__ = ["compress_one", "enliven", "main"]

_KEPT = 0.6
_BATCHES = (1, 3)
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


def compress_one(spec: str) -> dict[str, Any]:
    """Take one network all the way; the outcome names the step that failed, if one did.

    Returns:
        ``outcome`` is ``ok``, or the step that failed, with ``error``; then what was measured.
    """
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"outcome": "build", "versions": latency_versions()}
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        """Do a step: note its name first, in case it fails, and then its seconds."""
        row["outcome"], start = step, time.monotonic()
        result = work()
        seconds[step] = round(time.monotonic() - start, 2)
        return result

    try:
        size = input_size(spec)
        options = SourceOptions(source=spec, input_shape=(3, size, size))
        network, source = timed("build", lambda: open_source(options))
        enliven(network, source.image_shape, source.seed)
        seconds["forward"] = _forward_seconds(network, source.image_shape)
        pruned = timed("compress", lambda: _prune(network, source))
        plan = pruned.plan
        row |= {
            "scope": plan.request.scope,
            "macs": plan.dense.macs,
            "params": plan.dense.params,
            "macs_kept": round(plan.macs_kept, 4),
            "masked_error": plan.masked_error,
            "groups": len(plan.groups),
            "pruned_groups": sum(group.kept is not None for group in plan.groups),
            "left_dense": dict(Counter(_reason(group.reason) for group in plan.groups if group.kept is None)),
        }
        timed("same bits", lambda: _check_same_bits(network, pruned))
        with tempfile.TemporaryDirectory() as folder:
            timed("reload", lambda: _reload(Path(folder), pruned.network, plan))
            file = Path(folder) / "model.onnx"
            timed("export", lambda: write_onnx(pruned.network, source.image_shape, file, {}))
            checks = timed(
                "parity",
                lambda: check_seeded("pruned", pruned.network, open_cpu_session(file), source.image_shape, _BATCHES),
            )
        errors = [check.max_rel_error for check in checks]
        row["parity_error"] = max(error for error in errors if error is not None) if None not in errors else None
        if not all(check.ok for check in checks):
            faults = "; ".join(check.fault for check in checks if not check.ok)
            raise ParityError(f"torch and ONNX Runtime disagree: {faults}.")
        row["outcome"] = "ok"
    except PruneportError as error:
        row["error"] = str(error)
    row["step_s"] = seconds
    return row


def _prune(network: nn.Module, source: Source) -> Pruned:
    """Filters inside blocks; where a network has too few, its residual streams too."""
    asked = PruneOptions(flops=_KEPT, criterion="l1", ranking="uniform")
    try:
        return prune(network, source, asked)
    except InputError as error:
        try:
            return prune(network, source, replace(asked, scope="channels"))
        except InputError:
            raise error from None


def _check_same_bits(network: nn.Module, pruned: Pruned) -> None:
    """Raise where the plan, applied without a trace, gives other weights than the groups of the graph did.

    Keys of attention, whose scale a plan leaves to the weights, are scaled here by themselves.
    """
    plan = pruned.plan
    again = copy.deepcopy(network)
    apply_plan(again, plan.groups, plan.attributes, plan.sizes)
    coupling = find_coupling(network, example_inputs(plan.source, 1), plan.request.attention == "heads")
    by_name = {group.name: group for group in plan.groups}
    lost = {
        group.units[unit]
        for group in group_units(network, coupling)
        if (kept := by_name[group.name].kept) is not None
        for unit in set(range(group.width)).difference(kept)
    }
    rescale_keys(again, coupling, lambda unit: unit not in lost)
    ours, theirs = pruned.network.state_dict(), again.state_dict()
    apart = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    if apart or ours.keys() != theirs.keys():
        raise ParityError(f"applying the plan gives other weights than the graph: {', '.join(apart[:10])}.")


def enliven(network: nn.Module, shape: tuple[int, int, int], seed: int) -> None:
    """Draw norms and scales at random, since fresh ones do nothing, and measure statistics that keep outputs alive.

    The statistics of each BatchNorm are those of random inputs (4, C, H, W), times random factors; freely drawn ones
    would let a deep network blow up until float32 says nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    norms: list[Any] = []
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            norms.append(module)
        for name, parameter in module.named_parameters(recurse=False):
            flat = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if flat and bool(parameter.flatten()[0] == 1):
                parameter.data.uniform_(0.5, 1.5, generator=generator)
            elif flat and name != "weight":
                parameter.data += torch.empty_like(parameter).uniform_(-0.2, 0.2, generator=generator)
            elif flat:
                parameter.data += torch.empty_like(parameter).uniform_(0.05, 0.2, generator=generator)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, *shape, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(len(norm.running_mean), generator=generator)
        norm.running_var *= torch.empty(len(norm.running_var)).uniform_(0.7, 1.4, generator=generator)


def _forward_seconds(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Seconds of one forward pass, after one that is not timed."""
    inputs = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network(inputs)
        start = time.monotonic()
        network(inputs)
    return round(time.monotonic() - start, 3)


def _reload(folder: Path, network: nn.Module, plan: Any) -> None:
    """Write the network, read it back, and compare weights and outputs bit for bit."""
    write_network(folder, network, plan)
    again = check_reload(folder, network, plan)
    inputs = torch.randn(2, *plan.source.image_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = tensor_leaves(network(inputs)), tensor_leaves(again(inputs))
        if not all(map(torch.equal, ours, theirs)):
            raise ParityError("the network read back from disk does not compute what the pruned one does, bit for bit.")


def _reason(text: str) -> str:
    """A group's reason for staying dense, without the name of the group."""
    known = ("relies on this width", "residual stream", "outputs always stay", "representation", "leaves no smaller")
    for words in known:
        if words in text:
            return words
    return " ".join(text.split()[1:])[:80]


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
