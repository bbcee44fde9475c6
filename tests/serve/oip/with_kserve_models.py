"""Whether KServe's own models know every field of a manifest. Run by test_clients.py.

python with_kserve_models.py kserve.yaml
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
    """Every field is one that the model has, down to the last; raises AssertionError with the first that is not."""
    listed = re.fullmatch(r"[Ll]ist\[(.*)\]", kind)
    mapped = re.fullmatch(r"dict\(str, (.*)\)|Dict\[str, (.*)\]", kind)
    model = model_of(kind)
    if listed:
        assert isinstance(value, list), path
        for n, one in enumerate(value):
            check(one, listed[1], f"{path}[{n}]")
    elif mapped:
        for name, one in value.items():
            check(one, mapped[1] or mapped[2], f"{path}.{name}")
    elif model is not None:
        attributes = {name: attribute for attribute, name in model.attribute_map.items()}
        for name, one in value.items():
            assert name in attributes, f"{path}.{name} is no field of {kind}"
            check(one, model.openapi_types[attributes[name]], f"{path}.{name}")
    else:
        kinds = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
        assert isinstance(value, kinds[kind]), f"{path} is no {kind}"


def main():
    manifest = yaml.safe_load(Path(sys.argv[1]).read_text())
    check(manifest, "V1beta1InferenceService", "manifest")
    manifest["spec"]["predictor"]["containers"][0]["ennv"] = []
    try:
        check(manifest, "V1beta1InferenceService", "manifest")
    except AssertionError:
        return
    raise AssertionError("a wrong field was not found")


if __name__ == "__main__":
    main()
