"""Which tests `make test-fast` runs: those that start no server, train no model and export no bundle."""

import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# What keeps a test out of `make test-fast`: a fixture that trains, exports, or starts a server or a database …
SLOW_FIXTURES = frozenset({
    "bucket", "bundle_path", "digits_run", "equal_tokens_bundle", "held_out", "hub", "interrupted", "postgres",
    "published_digits_run", "run_batch", "run_command", "signs_run", "single_token_bundle", "start_server",
})  # fmt: skip
# … or a file or folder whose tests do so themselves …
SLOW_PATHS = (
    "end_to_end", "export/commands/test_adapt.py", "export/test_graph.py", "export/test_graph_precisions.py",
    "export/test_quantization.py",
    "export/test_third_party.py", "export/test_torch_plan.py", "serve/api/test_openapi.py",
    "serve/commands/test_batch.py", "serve/connection/test_graceful_shutdown.py", "serve/jobs/test_extras.py",
    "serve/jobs/test_interrupted.py", "serve/jobs/test_jobs_in_server.py", "serve/jobs/test_ray_cluster.py",
    "serve/oip/test_clients.py", "serve/oip/test_grpc_server.py", "serve/processes/test_supervisor.py",
    "serve/telemetry/test_tracing.py", "serve/test_image.py", "serve/test_quiet.py", "serve/test_server.py",
    "test_benchmarks.py", "test_kubernetes.py", "test_lowest_versions.py",
    "training/attacks/test_autoattack.py", "training/commands/test_evaluate.py",
    "training/evaluation/test_attack_checks.py", "training/evaluation/test_plot.py", "training/test_cotrain.py",
    "training/test_distributed.py", "training/test_interruption.py", "training/test_overfitting.py",
    "training/reporting/test_loggers.py", "training/reporting/test_mlflow_logger.py",
    "training/reporting/test_wandb_logger.py", "training/weights/test_pretrained.py", "training/test_run.py",
    "tureen/bench/test_worker.py", "tureen/commands/test_doctor.py",
    "tureen/engines/test_tensorrt_build.py", "tureen/engines/test_vendor_types.py",
)  # fmt: skip
# … or many processes, folders or attacks: four seconds or more.
SLOW_TESTS = frozenset({
    "test_a_body_that_decompresses_beyond_the_limit_is_refused",
    "test_a_migration_waits_for_a_lock_no_longer_than_its_limit",
    "test_a_process_killed_at_any_step_leaves_a_change_complete_or_absent",
    "test_a_process_killed_at_random_has_lost_nothing_it_acknowledged",
    "test_a_program_that_loads_a_soup_leaves_no_identifier_in_its_users_home",
    "test_an_ensemble_mixes_probabilities",
    "test_autoattack_includes_square",
    "test_each_severity_changes_a_picture_and_the_seed_repeats_it",
    "test_an_archive_whose_links_lead_through_too_many_folders_is_refused",
    "test_servers_that_start_together_on_an_empty_store_create_its_tables_once",
    "test_square_breaks_a_model_without_a_gradient",
    "test_ten_thousand_malformed_images_give_pixels_or_an_image_error_and_no_warning",
    "test_under_another_norm_the_attack_fools_within_the_radius",
    "test_with_the_extras_serve_and_cpu_alone_a_command_runs_or_names_the_extra",
    "test_worker_processes_decode_like_one_process",
    "test_writers_and_readers_in_separate_processes_see_one_history",
})  # fmt: skip


@functools.cache
def _is_slow_path(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / slow) for slow in SLOW_PATHS)


def is_fast(item: pytest.Item) -> bool:
    """Whether a test starts no server, trains no model and exports no bundle."""
    if _is_slow_path(item.path) or getattr(item, "originalname", "") in SLOW_TESTS:
        return False
    if getattr(item, "callspec", None) and item.callspec.params.get("store_url") == "postgresql":
        return False
    has_marker = any(item.get_closest_marker(name) for name in ("slow", "gpu"))
    return not has_marker and SLOW_FIXTURES.isdisjoint(item.fixturenames)
