"""`tureen batch` against what the machine's cores can do, and its memory from few images to many.

    python -m benchmarks.batch

The 10,000 test images of CIFAR-10 with the example bundle, and the 200 photographs, repeated to 5,000, with a ViT-Ti/16
of random weights at 224. Throughput is of a job from its first image to `_SUCCESS`, without opening the engine; the
limit is of the same run (DESIGN.md, Measuring). Memory is a process's largest, by the system's own count.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

from benchmarks.bare import Bare, print_cost
from benchmarks.machine import describe_machine
from benchmarks.subject import SMALL_BUNDLE, Subject, engine_options, photographs, random_bundle, small_images
from benchmarks.targets import line
from serve.jobs.decoding import Decoding, on_threads
from serve.jobs.input_sources import ANY, open_source
from serve.jobs.job_output import Job, locked
from serve.jobs.job_spec import Wanted, pin
from serve.jobs.pipeline import Pipeline
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine
from tureen.machine import available_cpus
from tureen.soup import Soup


def seconds_of(subject: Subject, manifest: Path, output: Path) -> float:
    """A job over the manifest, from its first image to its end."""
    streams = min(2, available_cpus())
    with (
        closing(open_source(str(manifest))) as source,
        ANY.place(output) as place,
        locked(place),
        Soup(subject.bundle, subject.open_engine(streams)) as soup,
    ):
        bundle = subject.bundle.manifest
        spec = pin(place, source, bundle, soup.engine, soup.limits, Wanted(betas=(0.5,)), None)
        with on_threads(source, Decoding(bundle.preprocess, soup.limits, False), min(8, available_cpus())) as readers:
            pipeline = Pipeline(soup.logits, readers, spec.betas, batch_rows=spec.batch_rows, streams=streams)
            started = time.perf_counter()
            job = Job(place, spec, bundle.labels)
            job.run(lambda parts: job.make(pipeline, parts, lambda done, failed: None))
            return time.perf_counter() - started


def manifest_of(files: list[Path], count: int, path: Path) -> Path:
    """A manifest of so many rows, the files in turns."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        rows.writerows([files[n % len(files)]] for n in range(count))
    return path


def throughput(subject: Subject, files: list[Path], count: int, work: Path) -> None:
    bare, shares = Bare(subject), []
    manifest = manifest_of(files, count, work / f"{subject.bundle.manifest.name}.csv")
    for n in range(subject.rounds):
        bare.measure()
        took = seconds_of(subject, manifest, work / f"{subject.bundle.manifest.name} {n}")
        shares.append(count / took)
        print(f"  {count / took:,.1f} images/s", flush=True)
    print_cost(bare.cost, subject)
    line(f"{subject.bundle.manifest.name}, {count:,} images: of the limit", "≥", 0.95, median(shares) / bare.cost.limit)
    bare.close()


def peak_bytes(manifest: Path, output: Path) -> int:
    command = [sys.executable, "-m", "tureen.cli", "batch", str(SMALL_BUNDLE), str(manifest), str(output)]
    process = subprocess.Popen(
        [*command, "--engine", "onnxruntime"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss * 1024


def memory(files: list[Path], work: Path, divide: int) -> None:
    few, many = (
        peak_bytes(manifest_of(files, count, work / f"memory {count}.csv"), work / f"memory {count}")
        for count in (1_000 // divide, 50_000 // divide)
    )
    note = f"{few / 2**20:.0f} and {many / 2**20:.0f} MiB"
    line("memory at 50,000 images / at 1,000", "≤", 1.1, many / few, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--divide", type=int, default=1, help="numbers of images by this: to see that it runs")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        small, large, images = small_images(work), [], photographs()
        for n, image in enumerate(images):
            large.append(work / f"photo {n:03}.jpg")
            large[-1].write_bytes(image)

        def subject(bundle: Path, files: list[Path], engine: str, precision: str) -> Subject:
            images = [file.read_bytes() for file in files[:200]]
            return Subject(load_bundle(bundle), images, engine, precision, (), 0, options.rounds, 0, 0)

        memory(small, work, options.divide)
        throughput(subject(SMALL_BUNDLE, small, "onnxruntime", "fp32"), small, 10_000 // options.divide, work)
        vit = random_bundle(work / "vit", images)
        fastest = open_engine(vit, options=engine_options())
        fastest.close()
        of_vit = subject(vit.path, large, fastest.name, fastest.precision)
        throughput(of_vit, large, 5_000 // options.divide, work)


if __name__ == "__main__":
    main()
