"""Where a run shows its metrics besides metrics.jsonl: TensorBoard, W&B, MLflow and Ray's own metrics.

    a step's metrics  ->  board.Board            tensorboard/, written by the driver itself
                      ->  following.Following    ->  queue  ->  one process for each tracker  ->  W&B, MLflow
                      ->  ray_series.RunSeries   ->  Ray's metrics agent  ->  Prometheus  ->  Grafana

No tracker ends a run or makes it wait, but for the end, which has a deadline.
"""
