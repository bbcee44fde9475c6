"""Reports a run: on the terminal, in log.jsonl, and to TensorBoard, MLflow and Weights & Biases."""
