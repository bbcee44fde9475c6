"""The photos of the tests in an archive or a manifest."""

import tarfile
import zipfile

import pandas as pd


def pack(photos, path):
    """Writes the photos into a new archive at `path`, under their names, and returns `path`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(photos.rglob("*.*")):
                archive.write(file, file.relative_to(photos))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for file in sorted(photos.rglob("*.*")):
                archive.add(file, file.relative_to(photos))
    return path


def write_manifest(photos, path):
    """Writes a manifest of the photos to `path`, and returns `path`."""
    table = pd.DataFrame({"path": [f"photos/{file.relative_to(photos)}" for file in sorted(photos.rglob("*.*"))]})
    table["id"] = [str(n) for n in range(len(table))]
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return path
