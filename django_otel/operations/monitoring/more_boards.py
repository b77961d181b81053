"""Further dashboards and panels: layers of a request, tasks, commands, the runtime, WebSockets."""

from __future__ import annotations

from django_otel.operations.monitoring.boards import (
    DASHBOARDS,
    ROUTE,
    TARGET,
    Dashboard,
    Panel,
    Query,
    percentiles,
    quantile,
    rate,
    share,
)


def _mean(metric: str, by: str, matchers: str = TARGET) -> str:
    return f"{rate(f'{metric}_sum', by, matchers)} / {rate(f'{metric}_count', by, matchers)}"


_WITHIN: tuple[Panel, ...] = (
    Panel(
        "Time by layer",
        "Mean time of a request in each layer of Django.",
        (
            Query(
                f"{rate('django_request_layer_duration_seconds_sum', 'django_layer', ROUTE)} / on () group_left ()"
                f" sum(rate(http_server_request_duration_seconds_count{{{ROUTE}}}[$__rate_interval]))",
                "{{django_layer}}",
            ),
        ),
        "s",
        is_stacked=True,
    ),
    Panel(
        "95th percentile by layer",
        "Of the time of a request in each layer.",
        (
            Query(
                quantile(0.95, "django_request_layer_duration_seconds", "django_layer", ROUTE), "{{django_layer}}"
            ),
        ),
        "s",
    ),
    Panel(
        "N+1 queries",
        "Requests per minute in which one statement came again and again, by route.",
        (Query(f"60 * {rate('django_request_n_plus_one_total', 'http_route', ROUTE)}", "{{http_route}}"),),
    ),
    Panel(
        "Slowest templates",
        "Seconds of rendering per second.",
        (
            Query(
                f"topk(10, {rate('django_template_duration_seconds_sum', 'django_template_name')})",
                "{{django_template_name}}",
            ),
        ),
        "s",
    ),
    Panel(
        "Mean time of a template",
        "The ten slowest.",
        (
            Query(
                f"topk(10, {_mean('django_template_duration_seconds', 'django_template_name')})",
                "{{django_template_name}}",
            ),
        ),
        "s",
    ),
    Panel(
        "Time in the queue",
        "From the proxy to Django, percentiles.",
        percentiles("http_server_request_time_in_queue_seconds", TARGET),
        "s",
    ),
)  # fmt: skip

_DATABASE: tuple[Panel, ...] = (
    Panel(
        "Transactions",
        "Per second, by outcome.",
        (
            Query(
                rate("django_db_transaction_duration_seconds_count", "django_db_alias, django_transaction_outcome"),
                "{{django_db_alias}} {{django_transaction_outcome}}",
            ),
        ),
        "ops",
    ),
    Panel(
        "Duration of transactions",
        "Percentiles.",
        percentiles("django_db_transaction_duration_seconds", TARGET),
        "s",
    ),
    Panel(
        "Failed connections",
        "Per minute, by error.",
        (
            Query(
                f"60 * {rate('django_db_connection_errors_total', 'django_db_alias, error_type')}",
                "{{django_db_alias}} {{error_type}}",
            ),
        ),
    ),
    Panel(
        "Connection pool",
        "Connections by state, and requests that wait for one.",
        (
            Query(
                f"sum by (django_db_alias, state) (django_db_pool_connections{{{TARGET}}})",
                "{{django_db_alias}} {{state}}",
            ),
            Query(f"sum by (django_db_alias) (django_db_pool_waiting{{{TARGET}}})", "{{django_db_alias}} waiting"),
        ),
    ),
    Panel(
        "Migrations",
        "By state.",
        (
            Query(
                f"max by (django_db_alias, django_migration_state) (django_migrations{{{TARGET}}})",
                "{{django_db_alias}} {{django_migration_state}}",
            ),
        ),
        kind="stat",
    ),
)

_TASK = "django_task_name"
_TASKS: tuple[Panel, ...] = (
    Panel(
        "Tasks sent",
        "Per second, by task.",
        (Query(rate("django_task_sent_total", _TASK), f"{{{{{_TASK}}}}}"),),
        "ops",
        is_stacked=True,
    ),
    Panel(
        "Tasks run",
        "Per second, by task and outcome.",
        (
            Query(
                rate("django_task_duration_seconds_count", f"{_TASK}, django_task_outcome"),
                f"{{{{{_TASK}}}}} {{{{django_task_outcome}}}}",
            ),
        ),
        "ops",
        is_stacked=True,
    ),
    Panel(
        "Failed tasks",
        "Share of the runs that failed, by task.",
        (
            Query(
                share(
                    rate(
                        "django_task_duration_seconds_count", _TASK, f'{TARGET}, django_task_outcome="failed"'
                    ),
                    rate("django_task_duration_seconds_count", _TASK),
                ),
                f"{{{{{_TASK}}}}}",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Duration of tasks",
        "95th percentile, by task.",
        (Query(quantile(0.95, "django_task_duration_seconds", _TASK), f"{{{{{_TASK}}}}}"),),
        "s",
    ),
    Panel(
        "Wait in the queue",
        "95th percentile, by queue.",
        (Query(quantile(0.95, "django_task_wait_seconds", "django_task_queue"), "{{django_task_queue}}"),),
        "s",
    ),
    Panel(
        "Length of queues",
        "Tasks that wait.",
        (
            Query(
                f"max by (django_task_backend, django_task_queue) (django_task_queue_length{{{TARGET}}})",
                "{{django_task_backend}} {{django_task_queue}}",
            ),
        ),
    ),
    Panel(
        "Management commands",
        "Runs in the selected range, by outcome.",
        (
            Query(
                "sum by (django_command_name, django_command_outcome)"
                f" (increase(django_command_duration_seconds_count{{{TARGET}}}[$__range]))",
                "{{django_command_name}} {{django_command_outcome}}",
            ),
        ),
        kind="stat",
    ),
    Panel(
        "Duration of commands",
        "Mean, by command.",
        (Query(_mean("django_command_duration_seconds", "django_command_name"), "{{django_command_name}}"),),
        "s",
    ),
    Panel(
        "Since the last success",
        "By command.",
        (
            Query(
                f"time() - max by (django_command_name) (django_command_last_success_seconds{{{TARGET}}})",
                "{{django_command_name}}",
            ),
        ),
        "s",
    ),
)  # fmt: skip


def _now(metric: str, by: str = "job, instance") -> str:
    return f"sum by ({by}) ({metric}{{{TARGET}}})"


_RUNTIME: tuple[Panel, ...] = (
    Panel(
        "CPU",
        "Cores in use, over all worker processes.",
        (Query(rate("process_cpu_time_seconds_total", "job, instance"), "{{instance}}"),),
    ),
    Panel(
        "Memory",
        "Resident, over all worker processes.",
        (Query(_now("process_memory_usage_bytes"), "{{instance}}"),),
        "bytes",
    ),
    Panel(
        "Worker processes",
        "Busy and idle, and those that have served requests, by how many they take at once.",
        (
            Query(_now("django_otel_workers", "state"), "{{state}}"),
            Query(_now("django_otel_workers_web", "concurrency"), "serving, {{concurrency}} at once"),
        ),
    ),
    Panel("Threads", "Over all worker processes.", (Query(_now("process_thread_count"), "{{instance}}"),)),
    Panel(
        "Open files",
        "Descriptors over all worker processes.",
        (Query(_now("process_open_file_descriptor_count"), "{{instance}}"),),
    ),
    Panel(
        "Uptime",
        "Of the oldest worker process.",
        (Query(f"max by (job, instance) (process_uptime_seconds{{{TARGET}}})", "{{instance}}"),),
        "s",
    ),
    Panel(
        "Garbage collections",
        "Per minute.",
        (Query(f"60 * {rate('cpython_gc_collections_total', 'job, instance')}", "{{instance}}"),),
    ),
    Panel("Pauses of the garbage collector", "Percentiles.", percentiles("cpython_gc_pause_seconds", TARGET), "s"),
    Panel("Lag of the event loop", "Percentiles.", percentiles("django_event_loop_lag_seconds", TARGET), "s"),
)

_WEBSOCKETS: tuple[Panel, ...] = (
    Panel(
        "Connections",
        "Open, by route.",
        (Query(_now("django_websocket_connections", "http_route"), "{{http_route}}"),),
    ),
    Panel(
        "Messages",
        "Per second, by direction.",
        (
            Query(
                rate("django_websocket_messages_total", "http_route, network_io_direction", ROUTE),
                "{{http_route}} {{network_io_direction}}",
            ),
        ),
        "ops",
    ),
    Panel(
        "Duration of connections",
        "95th percentile, by the side that closed.",
        (
            Query(
                quantile(0.95, "django_websocket_duration_seconds", "django_websocket_closed_by", ROUTE),
                "{{django_websocket_closed_by}}",
            ),
        ),
        "s",
    ),
)  # fmt: skip


def _with_more(board: Dashboard) -> Dashboard:
    if board.topic != "database":
        return board
    return Dashboard(board.topic, board.title, board.description, (*board.panels, *_DATABASE))


_NEW = (
    Dashboard("layers", "Django: within a request", "Layers, N+1 queries, templates, queue.", _WITHIN),
    Dashboard("tasks", "Django: tasks and commands", "Task queues and management commands.", _TASKS),
    Dashboard("runtime", "Django: runtime", "Processes, memory, garbage collector, event loop.", _RUNTIME),
    Dashboard("websockets", "Django: websockets", "Connections and messages.", _WEBSOCKETS),
)
#: Every dashboard, in the order of the files.
ALL_DASHBOARDS: tuple[Dashboard, ...] = (
    *(_with_more(board) for board in DASHBOARDS),
    *_NEW,
)
