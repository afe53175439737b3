"""The tasks that peft_aot knows by name: GLUE, SuperGLUE and four more, one data row each."""

from __future__ import annotations

from peft_aot.rendering import Columns, Render, render_copa, render_multirc, render_record, render_wic, render_wsc
from peft_aot.suggestions import did_you_mean
from peft_aot.task import HubSource, Kind, Task

# The hub's own parquet conversion of data sets whose original form is a loading script, which `datasets` runs no more.
PARQUET_BRANCH = "refs/convert/parquet"


def _glue(
    config: str,
    text: str,
    pair: str | None,
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    kind: Kind = "classification",
    validation: str = "validation",
) -> Task:
    columns = (text, "label") if pair is None else (text, pair, "label")
    source = HubSource("nyu-mll/glue", f"glue/{config}", config, validation=validation)
    return Task(config, source, columns, labels, metrics, Columns(text, pair), kind)


def _super_glue(
    config: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    render: Render,
    metrics: tuple[str, ...] = ("accuracy",),
    kind: Kind = "classification",
    max_length: int = 128,
    name: str | None = None,
    label_column: str = "label",
) -> Task:
    source = HubSource("aps/super_glue", f"super_glue/{config}", config, PARQUET_BRANCH)
    return Task(name or config, source, columns, labels, metrics, render, kind, label_column, max_length)


FALSE_TRUE = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")

GLUE = (
    _glue("cola", "sentence", None, ("unacceptable", "acceptable"), ("matthews_correlation",)),
    _glue("sst2", "sentence", None, ("negative", "positive")),
    _glue("mrpc", "sentence1", "sentence2", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    _glue("stsb", "sentence1", "sentence2", (), ("pearson", "spearman"), kind="regression"),
    _glue("qqp", "question1", "question2", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    _glue("mnli", "premise", "hypothesis", ("entailment", "neutral", "contradiction"), validation="validation_matched"),
    _glue("qnli", "question", "sentence", ENTAILMENT),
    _glue("rte", "sentence1", "sentence2", ENTAILMENT),
    _glue("wnli", "sentence1", "sentence2", ("not_entailment", "entailment")),
)

SUPER_GLUE = (
    _super_glue("boolq", ("question", "passage", "label"), FALSE_TRUE, Columns("question", "passage"), max_length=256),
    _super_glue(
        "cb",
        ("premise", "hypothesis", "label"),
        ("entailment", "contradiction", "neutral"),
        Columns("premise", "hypothesis"),
        ("accuracy", "macro_f1"),
        max_length=256,
    ),
    _super_glue(
        "copa",
        ("premise", "choice1", "choice2", "question", "label"),
        ("choice1", "choice2"),
        render_copa,
        kind="multiple_choice",
    ),
    _super_glue(
        "multirc",
        ("paragraph", "question", "answer", "label"),
        FALSE_TRUE,
        render_multirc,
        ("multirc",),
        max_length=384,
    ),
    _super_glue(
        "record",
        ("passage", "query", "entities", "answers"),
        FALSE_TRUE,
        render_record,
        ("record",),
        max_length=384,
        label_column="answers",
    ),
    _super_glue(
        "wic",
        ("word", "sentence1", "sentence2", "start1", "start2", "end1", "end2", "label"),
        FALSE_TRUE,
        render_wic,
    ),
    _super_glue(
        "wsc", ("text", "span1_index", "span2_index", "span1_text", "span2_text", "label"), FALSE_TRUE, render_wsc
    ),
    _super_glue(
        "rte",
        ("premise", "hypothesis", "label"),
        ENTAILMENT,
        Columns("premise", "hypothesis"),
        name="super_glue/rte",
        max_length=256,
    ),
)

BANKING77 = """
    activate_my_card age_limit apple_pay_or_google_pay atm_support automatic_top_up
    balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit
    beneficiary_not_allowed cancel_transfer card_about_to_expire card_acceptance card_arrival
    card_delivery_estimate card_linking card_not_working card_payment_fee_charged card_payment_not_recognised
    card_payment_wrong_exchange_rate card_swallowed cash_withdrawal_charge cash_withdrawal_not_recognised
    change_pin compromised_card contactless_not_working country_support declined_card_payment
    declined_cash_withdrawal declined_transfer direct_debit_payment_not_recognised disposable_card_limits
    edit_personal_details exchange_charge exchange_rate exchange_via_app extra_charge_on_statement
    failed_transfer fiat_currency_support get_disposable_virtual_card get_physical_card getting_spare_card
    getting_virtual_card lost_or_stolen_card lost_or_stolen_phone order_physical_card passcode_forgotten
    pending_card_payment pending_cash_withdrawal pending_top_up pending_transfer pin_blocked receiving_money
    Refund_not_showing_up request_refund reverted_card_payment? supported_cards_and_currencies terminate_account
    top_up_by_bank_transfer_charge top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed top_up_limits
    top_up_reverted topping_up_by_card transaction_charged_twice transfer_fee_charged transfer_into_account
    transfer_not_received_by_recipient transfer_timing unable_to_verify_identity verify_my_identity
    verify_source_of_funds verify_top_up virtual_card_not_working visa_or_mastercard why_verify_identity
    wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal
""".split()  # noqa: SIM905 - 77 names read better as a paragraph


def _extra(name: str, labels: tuple[str, ...], source: HubSource, max_length: int = 128) -> Task:
    return Task(name, source, ("sentence", "label"), labels, ("accuracy",), Columns("sentence"), max_length=max_length)


EXTRA = (
    _extra(
        "trec",
        ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        HubSource(
            "CogComp/trec",
            "extra/trec",
            revision=PARQUET_BRANCH,
            renames=(("text", "sentence"), ("coarse_label", "label")),
            validation="test",
        ),
    ),
    _extra(
        "banking77",
        tuple(BANKING77),
        HubSource(
            "PolyAI/banking77",
            "extra/banking77",
            revision=PARQUET_BRANCH,
            renames=(("text", "sentence"),),
            validation="test",
        ),
    ),
    _extra(
        "snips",
        (
            "AddToPlaylist",
            "BookRestaurant",
            "GetWeather",
            "PlayMusic",
            "RateBook",
            "SearchCreativeWork",
            "SearchScreeningEvent",
        ),
        HubSource(
            "benayas/snips", "extra/snips", renames=(("text", "sentence"), ("category", "label")), validation="test"
        ),
    ),
    _extra(
        "sms_spam",
        ("ham", "spam"),
        HubSource("ucirvine/sms_spam", "extra/sms_spam", renames=(("sms", "sentence"),), holdout=5),
    ),
)

_BY_NAME = {task.name: task for task in (*GLUE, *SUPER_GLUE, *EXTRA)}


def task_names() -> tuple[str, ...]:
    """Names that `get_task` knows, in the order GLUE, SuperGLUE, extras."""
    return tuple(_BY_NAME)


def get_task(name: str) -> Task:
    """Look a task up by name; "rte" is GLUE's, "super_glue/rte" is SuperGLUE's.

    Raises:
        ValueError: No task has that name; the message says which one comes closest.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown task {name!r}; {did_you_mean(name, task_names())}")
    return _BY_NAME[name]
