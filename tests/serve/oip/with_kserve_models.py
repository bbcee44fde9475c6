"""Checks every field of manifests against the models of KServe. Run by test_clients.py.

python with_kserve_models.py kserve.yaml kserve-runtime.yaml
"""

import re
import sys
from pathlib import Path

import kserve.models
import kubernetes.client.models
import yaml


def model_of(name):
    for place in (kserve.models, kubernetes.client.models):
        if hasattr(place, name):
            return getattr(place, name)
    return None


def check(value, kind, path):
    """Check all fields recursively; raises AssertionError with the first unknown field."""
    item_kind = re.fullmatch(r"[Ll]ist\[(.*)\]", kind)
    value_kind = re.fullmatch(r"dict\(str, (.*)\)|Dict\[str, (.*)\]", kind)
    model = model_of(kind)
    if item_kind:
        assert isinstance(value, list), path
        for n, item in enumerate(value):
            check(item, item_kind[1], f"{path}[{n}]")
    elif value_kind:
        for name, item in value.items():
            check(item, value_kind[1] or value_kind[2], f"{path}.{name}")
    elif model is not None:
        attributes = {name: attribute for attribute, name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in attributes, f"{path}.{name} is not a field of {kind}"
            check(item, model.openapi_types[attributes[name]], f"{path}.{name}")
    else:
        kinds = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
        assert isinstance(value, kinds[kind]), f"{path} is not of type {kind}"


def main():
    for path in sys.argv[1:]:
        manifest = yaml.safe_load(Path(path).read_text())
        kind = f"V{manifest['apiVersion'].rpartition('/v')[2]}{manifest['kind']}"
        assert model_of(kind) is not None, kind
        check(manifest, kind, "manifest")
        manifest["spec"]["speck"] = []
        try:
            check(manifest, kind, "manifest")
        except AssertionError:
            continue
        raise AssertionError("a wrong field was not detected")


if __name__ == "__main__":
    main()
