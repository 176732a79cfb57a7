"""The steps as Kubeflow components: wiring around `pipelines.steps`, in images that hold the package already."""

from kfp import dsl

from pipelines import PIPELINES, TRAINER


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def settings(
    run_workspace: str, run_name: str, run_from_step: str, run_claim: str, run_trainer_image: str, run_pipelines_image: str, run_launch: str,
    run_deploy: str, run_id: str,
    model: str, model_seed: int,
    input_data: str, input_test_data: str, input_text_column: str, input_label_column: str, input_class_names: str, input_bad_rows: str,
    input_validation_fraction: float, input_test_fraction: float, input_max_train_rows: int, input_max_length: int,
    train_epochs: int, train_batch_size: int, train_accumulation_steps: int, train_learning_rate: float, train_warmup_fraction: float,
    train_weight_decay: float, train_max_grad_norm: float, train_precision: str, train_strategy: str, train_shard_ranks: int,
    train_gradient_compression: str, train_early_stopping_patience: int, train_resume: str, train_allow_changed_world: bool,
    train_checkpoint_steps: int, train_checkpoint_minutes: float, train_keep_last: int, train_keep_best: int, train_log_steps: int,
    train_profile_steps: int, train_timeout_minutes: float, train_hang_minutes: float, train_max_skipped_steps: int,
    evaluate_mistakes_shown: int,
    gate_min_accuracy: float, gate_max_accuracy_drop: float,
    export_check_rows: int,
    launch_ranks: int, launch_max_restarts: int,
    job_nodes: int, job_gpus: int, job_gpu_resource: str, job_processes: int, job_elastic: bool, job_cpu: str, job_memory: str, job_queue: str,
    job_priority_class: str, job_service_account: str, job_image_pull_secrets: str, job_node_selector: str, job_tolerations: str, job_env: str,
    job_backoff_limit: int, job_keep_failed: bool,
    deadline_schedule_minutes: float, deadline_run_minutes: float, deadline_progress_minutes: float,
    deploy_release: str, deploy_namespace: str, deploy_server_image: str, deploy_values: str, deploy_values_file: str, deploy_existing_values: str,
    deploy_timeout_minutes: float, deploy_texts: int, deploy_agreement: float, deploy_url: str, deploy_api_key_file: str,
) -> str:  # fmt: skip
    from pipelines.kubeflow.parameters import start_from_form

    return start_from_form(locals())


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def preprocess(run_folder: str) -> str:
    from pipelines.steps import run_step

    return run_step("preprocess", run_folder)


@dsl.component(
    base_image=PIPELINES,
    install_kfp_package=False,
    task_config_passthroughs=[
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)
def train(run_folder: str, task_config: dsl.TaskConfig) -> str:
    from pipelines.steps import run_step

    return run_step("train", run_folder, task_config=task_config)


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def evaluate(
    run_folder: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion_matrix: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    from pipelines.kubeflow.artifacts import show
    from pipelines.steps import run_step

    run_step("evaluate", run_folder)
    show(run_folder, metrics, confusion_matrix, report, summary)
    return run_folder


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def gate(run_folder: str) -> str:
    from pipelines.steps import run_step

    return run_step("gate", run_folder)


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def export(run_folder: str) -> str:
    from pipelines.steps import run_step

    return run_step("export", run_folder)


@dsl.component(base_image=PIPELINES, install_kfp_package=False)
def deploy(run_folder: str) -> str:
    from pipelines.steps import run_step

    return run_step("deploy", run_folder)


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def finish(
    run_workspace: str,
    run_name: str,
    run_id: str,
    status: dsl.PipelineTaskFinalStatus,
    summary: dsl.Output[dsl.Markdown],
) -> None:
    from pathlib import Path

    from pipelines.kubeflow.parameters import run_folder
    from pipelines.kubeflow.summary import finish as write_summary

    folder = run_folder(run_workspace, run_name, run_id)
    write_summary(folder, run_id=run_id, state=status.state, message=status.error_message, shown=Path(summary.path))
