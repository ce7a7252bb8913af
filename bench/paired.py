#!/usr/bin/env python3
"""Runs bench-train and the Python baseline in turn on the same files, and prints median, lowest and highest of each.

    bench/paired.py --python PYTHON --model DIR --data FILE [--dtype bf16] [--rounds 3] [--trl]

The rules are those of shared/peers/README.md, "Fairness": an idle machine, one run of each first that is not counted (the
file cache), then A B A B. PYTHON has torch, transformers and peft; what TRL does needs trl and datasets too (--trl).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

FIELDS = ["tokens_per_s", "nominal_gflop_per_s", "peak_rss_mib", "ready_seconds", "first_step_seconds"]
# What glibc needs to keep its pages, as the README asks for the Python side.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184",
               "MALLOC_TOP_PAD_": "268435456", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--peers", default="../shared/peers", help="folder of peft_sft.py")
    parser.add_argument("--bench-train", default="build/release/bin/bench-train")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--steps", default="8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", action="store_true", help="also one run of TRL as it comes")
    return parser.parse_args()


def idle_time():
    """Ticks that the processors were idle, and all their ticks, since the machine started."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    return ticks[3] + ticks[4], sum(ticks)


def wait_until_idle():
    # Not by the load average: that still holds the run before for minutes.
    while True:
        idle, every = idle_time()
        time.sleep(2)
        now_idle, now_every = idle_time()
        if now_idle - idle > 0.97 * (now_every - every):
            return


def run(command, environment=None):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(name, runs):
    for field in FIELDS:
        values = [r[field] for r in runs if field in r]
        if values:
            print(f"{name:8} {field:20} {statistics.median(values):10.2f}   {min(values):.2f} to {max(values):.2f}", flush=True)


def main():
    args = arguments()
    shared = ["--model", args.model, "--data", args.data, "--method", args.method, "--dtype", args.dtype,
              "--max-length", "512", "--micro-batch-tokens", "2048", "--steps", args.steps, "--threads", "2"]
    peer = [args.python, args.peers + "/peft_sft.py", *shared]
    engines = {"luthier": lambda: run([args.bench_train, *shared, "--json"]),
               "loop": lambda: run([*peer, "--engine", "loop"], KEEP_MEMORY)}
    results = {name: [] for name in engines}
    for round_number in range(args.rounds + 1):
        for name, measure in engines.items():
            wait_until_idle()
            result = measure()
            busy = result["steady_cpu_seconds"] / (2 * result["steady_seconds"])
            print(f"{name}: {result['tokens_per_s']:.1f} tokens/s, {busy:.0%} of two cores"
                  + ("" if round_number else ", not counted"), file=sys.stderr)
            if round_number:
                results[name].append(result)
    for name, runs in results.items():
        report(name, runs)
    if args.trl:
        wait_until_idle()
        report("trl", [run([*peer, "--engine", "trl"], KEEP_MEMORY)])



if __name__ == "__main__":
    main()
