"""Downloads, caches and uploads bundles at an address: on the Hugging Face hub, in S3, or in a mounted directory."""
