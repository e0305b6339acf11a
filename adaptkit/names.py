"""Define the names of everything that adaptkit writes to MLflow: metrics, tags and artifacts.

A name that is a prefix ends with `/` or `_`. A test checks that no other module contains one of these names.
"""

from __future__ import annotations

# Metrics of each epoch. The step is the number of the epoch.
TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
TEST_ACCURACY = "test/accuracy"
SHIFTED_ACCURACY = "shifted/accuracy"
VALIDATION_ACCURACY = "validation/accuracy"
VALIDATION_LOSS = "validation/loss"
#: start of the name of the score of a tuning run by another deciding metric than accuracy, after its last epoch
VALIDATION_SCORE = "validation/"
TIME_EPOCH_SECONDS = "time/epoch_seconds"
TIME_CUMULATIVE_SECONDS = "time/cumulative_seconds"

# Final metrics of an adaptation run: quality of the model.
FINAL_TEST_ACCURACY = "final/test_accuracy"
FINAL_SHIFTED_ACCURACY = "final/shifted_accuracy"
#: start of the names of the metrics of plugins and of the built-in ones, on the target
FINAL_SHIFTED = "final/shifted_"
FINAL_SHIFTED_MACRO_F1 = "final/shifted_macro_f1"
FINAL_ZERO_SHOT_ACCURACY = "final/zero_shot_accuracy"
FINAL_BASE_TEST_ACCURACY = "final/base_test_accuracy"
FINAL_GAIN = "final/gain"
FINAL_RETENTION = "final/retention"

# Final metrics of a refit, next to those above: the ends of the interval of the expected target accuracy, and how
# optimistic it is to have chosen the best strategy. A refit is not evaluated: all its accuracies are estimates.
FINAL_SHIFTED_ACCURACY_LOW = "final/shifted_accuracy_low"
FINAL_SHIFTED_ACCURACY_HIGH = "final/shifted_accuracy_high"
FINAL_OPTIMISM = "final/optimism"

# Final metrics of a calibrated refit: its temperature, and the cross-fitted quality of the probabilities. Fractions.
CALIBRATION_TEMPERATURE = "calibration/temperature"
CALIBRATION_NLL_BEFORE = "calibration/nll_before"
CALIBRATION_NLL_AFTER = "calibration/nll_after"
CALIBRATION_ECE_BEFORE = "calibration/ece_before"
CALIBRATION_ECE_AFTER = "calibration/ece_after"

# Final metrics of an adaptation run: size and costs.
PARAMS_TOTAL = "params/total"
PARAMS_TRAINABLE = "params/trainable"
PARAMS_TRAINABLE_FRACTION = "params/trainable_fraction"
PARAMS_TRAINABLE_HEAD = "params/trainable_head"
PARAMS_TRAINABLE_ADAPTER = "params/trainable_adapter"
PARAMS_TRAINABLE_BASE = "params/trainable_base"
SIZE_ADAPTER_BYTES = "size/adapter_bytes"
MEMORY_PEAK_BYTES = "memory/peak_bytes"
TIME_TRAIN_SECONDS = "time/train_seconds"
TIME_ALL_FOLDS_SECONDS = "time/all_folds_seconds"
#: seconds of all trials of the tuning of one model, on average over the fits of a run that is tuned inside them
TIME_TUNING_SECONDS = "time/tuning_seconds"
TIME_EVALUATION_SECONDS = "time/evaluation_seconds"
TIME_INFERENCE_RATIO = "time/inference_ratio"

# Final metrics over severities of the shift. The severity follows the prefix.
SEVERITY_AREA = "final/severity_area"
SEVERITY_ACCURACY = "severity/accuracy_"
SEVERITY_ZERO_SHOT = "severity/zero_shot_"

# Metrics of a comparison. The name of the compared metric and of the strategy follow the prefix.
COMPARISON_MEAN = "mean/"
COMPARISON_LOW = "low/"
COMPARISON_HIGH = "high/"

# Families of metrics. MLflow writes `system/` itself.
FAMILY_FINAL = "final/"
FAMILY_MEMORY = "memory/"
FAMILY_PARAMS = "params/"
FAMILY_SIZE = "size/"
FAMILY_SYSTEM = "system/"
FAMILY_TIME = "time/"

# Tags of MLflow: its user interface shows them.
PARENT_TAG = "mlflow.parentRunId"
DESCRIPTION_TAG = "mlflow.note.content"
USER_TAG = "mlflow.user"
COMMAND_TAG = "mlflow.source.name"
SOURCE_TYPE_TAG = "mlflow.source.type"
GIT_COMMIT_TAG = "mlflow.source.git.commit"
GIT_BRANCH_TAG = "mlflow.source.git.branch"
DATA_CONTEXT_TAG = "mlflow.data.context"

# Tags of every run: its kind, the process that runs it, and how it ended.
KIND_TAG = "adaptkit.kind"
VERSION_TAG = "adaptkit.version"
LOCAL_ID_TAG = "adaptkit.local_id"
HOST_TAG = "adaptkit.host"
PID_TAG = "adaptkit.pid"
PROCESS_SEEN_TAG = "adaptkit.process_seen"
PROTOCOL_TAG = "adaptkit.protocol"
PROCESSES_TAG = "adaptkit.processes"
THREADS_TAG = "adaptkit.threads"
TIMING_TAG = "adaptkit.timing"
RESUMED_TAG = "adaptkit.resumed"
ERROR_TAG = "adaptkit.error"
#: signs that a run has not learned, one a line; absent if there are none
WARNINGS_TAG = "adaptkit.warnings"
#: likewise of the base of a run
BASE_WARNINGS_TAG = "adaptkit.base_warnings"

# Tags of base, adaptation and tuning runs: what they were computed from.
RECIPE_KEY_TAG = "adaptkit.recipe_key"
BASE_RUN_ID_TAG = "adaptkit.base_run_id"
BASE_FINGERPRINT_TAG = "adaptkit.base_fingerprint"
DATA_FINGERPRINT_TAG = "adaptkit.data_fingerprint"
IMAGES_DIGEST_TAG = "adaptkit.images_digest"
POOL_IMAGES_TAG = "adaptkit.pool_images"
DRAWN_IMAGES_TAG = "adaptkit.drawn_images"
#: number of the division of the pool into disjoint draws that a run's draw is a part of
DIVISION_TAG = "adaptkit.division"
#: values of the column whose values are held out, as JSON, in the order of the folds
HELD_OUT_TAG = "adaptkit.held_out"
DRAW_SEED_TAG = "adaptkit.draw_seed"
INIT_SEED_TAG = "adaptkit.init_seed"
ORDER_SEED_TAG = "adaptkit.order_seed"
REFIT_OF_TAG = "adaptkit.refit_of"
COMPARISON_RUN_ID_TAG = "adaptkit.comparison_run_id"
PAIR_ID_TAG = "adaptkit.pair_id"
ARM_TAG = "adaptkit.arm"
STARTS_AT_BASE_TAG = "adaptkit.starts_at_base"
FROZEN_PREFIX_TAG = "adaptkit.frozen_prefix"
ADAPTER_SHA256_TAG = "adaptkit.adapter_sha256"

# Tags of sweeps, of their trials, and of comparisons.
SWEEP_KEY_TAG = "adaptkit.sweep_key"
TRIAL_KEY_TAG = "adaptkit.trial_key"
TUNING_TAG = "adaptkit.tuning"
#: number of trials with which every fit of a run chose its own values (param `tuning.trials`); absent without tuning
TUNED_INSIDE_TAG = "adaptkit.tuned_inside"
#: the values that the fits of a run chose, as a JSON list of dictionaries
TUNED_VALUES_TAG = "adaptkit.tuned_values"
#: labels on which an earlier tuning chose the values of a run (param `tuning.on`): `evaluated`, if they include labels
#: that the run evaluates, or `other`; absent if the values do not come from a tuning
TUNED_ON_TAG = "adaptkit.tuned_on"
METRIC_TAG = "adaptkit.metric"
COMPARED_RUNS_TAG = "adaptkit.compared_runs"

# Artifacts of base, adaptation and tuning runs.
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.txt"
PREDICTIONS_FILE = "predictions.csv"
PREDICTIONS_PARQUET_FILE = "predictions.parquet"
SPLIT_FILE = "split.json"
SEVERITY_FILE = "severity.json"
ERROR_FILE = "error.txt"
SAMPLES_FILE = "samples.png"
CURVES_FILE = "curves.png"
RELIABILITY_FILE = "reliability.png"
CONFUSION_FIGURE = "confusion_"
CLASSIFICATION_REPORT = "classification_report_"
ADAPTER_FOLDER = "adapter"
ADAPTER_CARD_FILE = "adapter.json"
ADAPTER_WEIGHTS_FILE = "adapter.safetensors"
#: folder of the adapter of one fold, below the folder of adapters
FOLD_FOLDER = "fold-"
ADAPTER_CARD_PATH = "adapter/adapter.json"
BASE_FOLDER = "base"
BASE_CARD_FILE = "base.json"
BASE_WEIGHTS_FILE = "base.safetensors"
BASE_WEIGHTS_PATH = "base/base.safetensors"

# Artifacts of runs that group others.
ARMS_FILE = "arms.csv"
COMPARISON_FILE = "comparison.json"
REPORT_MARKDOWN_FILE = "report.md"
REPORT_FILE = "report.html"
SWEEP_FILE = "sweep.json"
TUNING_FILE = "tuning.json"

# Attributes of the trials in Optuna's study of a tuning.
OPTUNA_REASON = "adaptkit.reason"
OPTUNA_RUNS = "adaptkit.runs"
OPTUNA_LOSS = "adaptkit.loss"
OPTUNA_ACCURACY = "adaptkit.accuracy"
