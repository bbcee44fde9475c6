"""Measures `tureen batch`: its throughput as a share of the hardware limit, and its peak memory.

    python -m benchmarks.batch

Classifies the 10,000 test images of CIFAR-10 with the example bundle: from files, from a tar, from a zip, and from a
Parquet file that holds the images. Then classifies 5,000 photographs (200 files, repeated) with a ViT-Ti/16 of random
weights at 224 × 224 pixels. Throughput is images per second, from the first image to the file `_SUCCESS`. The time to
open the engine does not count. `benchmarks.hardware_limit` measures the limit in the same run. Peak memory is the
largest resident size of the process, for 1,000 and for 50,000 images.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from statistics import median

from benchmarks.hardware_limit import LimitMeasurement, print_limit
from benchmarks.machine import describe_machine
from benchmarks.targets import report_target
from benchmarks.workload import (
    SMALL_BUNDLE,
    Workload,
    cifar10_files,
    engine_options,
    load_photographs,
    make_random_bundle,
)
from serve.inference.decode_process import DecodeOptions
from serve.jobs.decoding import decode_in_threads
from serve.jobs.input_sources import ALL_FILES, open_source
from serve.jobs.job_output import Job, lock_output, start_or_resume
from serve.jobs.job_spec import JobOptions
from serve.jobs.pipeline import Pipeline
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine
from tureen.machine import available_cpus
from tureen.soup import Soup


def run_job(workload: Workload, source_path: Path, output: Path) -> float:
    """Runs a batch job over the images of an input. Returns the seconds from the first image to the end."""
    streams = min(2, available_cpus())
    with (
        closing(open_source(str(source_path))) as source,
        ALL_FILES.open_output(output) as job_output,
        lock_output(job_output),
        Soup(workload.bundle, workload.open_engine(streams)) as soup,
    ):
        bundle = workload.bundle.manifest
        spec = start_or_resume(job_output, source, bundle, soup.engine, soup.limits, JobOptions(betas=(0.5,)), None)
        decode_options = DecodeOptions(bundle.preprocess, soup.limits)
        with decode_in_threads(source, decode_options, min(8, available_cpus())) as pool:
            pipeline = Pipeline(
                soup.logits,
                pool,
                spec.betas,
                temperatures=spec.temperatures,
                batch_rows=spec.batch_rows,
                streams=streams,
            )
            started = time.perf_counter()
            job = Job(job_output, spec, bundle.labels)
            job.run(lambda tasks: job.make_shards(pipeline, tasks, lambda done, failed: None))
            return time.perf_counter() - started


def write_manifest(files: list[Path], count: int, path: Path) -> Path:
    """Writes the list of the input images of a job to `path`, a CSV file with `count` rows. Returns `path`.

    The rows repeat the paths in `files`, in order.
    """
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        rows.writerows([files[n % len(files)]] for n in range(count))
    return path


def write_archives(files: list[Path], count: int, work: Path) -> list[Path]:
    """Writes a tar, a zip and a Parquet file with the first `count` of the files below `work`. Returns their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"{n:05}.jpg" for n in range(count)]
    with tarfile.open(work / "images.tar", "w") as tar, zipfile.ZipFile(work / "images.zip", "w") as archive:
        for name, file in zip(names, files, strict=False):
            tar.add(file, name)
            archive.write(file, name)
    images = [file.read_bytes() for file in files[:count]]
    pq.write_table(pa.table({"path": names[: len(images)], "image": images}), work / "images.parquet")
    return [work / "images.tar", work / "images.zip", work / "images.parquet"]


def measure_throughput(workload: Workload, targets: Mapping[Path, float], count: int, work: Path) -> None:
    """Measures the throughput from each input. targets: the target share of the limit of each input."""
    name, measurement = workload.bundle.manifest.name, LimitMeasurement(workload)
    rates: dict[Path, list[float]] = {path: [] for path in targets}
    for n in range(workload.rounds):
        measurement.measure_round()
        for path, of_path in rates.items():
            of_path.append(count / run_job(workload, path, work / f"{name} {path.name} {n}"))
            print(f"  {path.name}: {of_path[-1]:,.1f} images/s", flush=True)
    print_limit(measurement.cost, workload)
    for path, target in targets.items():
        share = median(rates[path]) / measurement.cost.images_per_s
        report_target(f"{name}, {count:,} images, {path.suffix[1:]}: throughput / limit", "≥", target, share)
    measurement.close()


def peak_bytes(manifest: Path, output: Path) -> int:
    command = [sys.executable, "-m", "tureen.cli", "batch", str(SMALL_BUNDLE), str(manifest), str(output)]
    process = subprocess.Popen(
        [*command, "--engine", "onnxruntime"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss * 1024


def measure_memory(files: list[Path], work: Path, divide: int) -> None:
    few, many = (
        peak_bytes(write_manifest(files, count, work / f"memory {count}.csv"), work / f"memory {count}")
        for count in (1_000 // divide, 50_000 // divide)
    )
    note = f"{few / 2**20:.0f} and {many / 2**20:.0f} MiB"
    report_target("memory at 50,000 images / at 1,000", "≤", 1.1, many / few, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--divide", type=int, default=1, help="divide the numbers of images by this, for a quick trial")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        small, large, images = cifar10_files(work), [], load_photographs()
        for n, image in enumerate(images):
            large.append(work / f"photo {n:03}.jpg")
            large[-1].write_bytes(image)

        def workload(bundle: Path, files: list[Path], engine: str, precision: str) -> Workload:
            images = [file.read_bytes() for file in files[:200]]
            return Workload(load_bundle(bundle), images, engine, precision, (), 0, options.rounds, 0, 0)

        measure_memory(small, work, options.divide)
        count = 10_000 // options.divide
        targets = {write_manifest(small, count, work / "cifar10.csv"): 0.85}
        if len(small) >= count:
            targets |= dict.fromkeys(write_archives(small, count, work), 0.9)
        measure_throughput(workload(SMALL_BUNDLE, small, "onnxruntime", "fp32"), targets, count, work)
        vit = make_random_bundle(work / "vit", images)
        fastest = open_engine(vit, options=engine_options())
        fastest.close()
        of_vit = workload(vit.path, large, fastest.name, fastest.precision)
        count = 5_000 // options.divide
        measure_throughput(of_vit, {write_manifest(large, count, work / "photographs.csv"): 0.95}, count, work)


if __name__ == "__main__":
    main()
