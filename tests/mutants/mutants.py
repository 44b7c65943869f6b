"""Single mistakes in the scheduling and block code, each of which some check must notice.

A mutant is (file of simkit/engine, text that occurs once in it, what replaces it). Each is a mistake one could make: a
rule left out, a boundary off by one, the wrong end of a queue, a count not kept.
"""
# ruff: noqa: E501 - a table: a mutant is one line

Mutant = tuple[str, str, str]

VLLM_V1: list[Mutant] = [
    ("vllm_v1.py", "if r.at[PREEMPTED_NOW] == 0:", "if r.at[PREEMPTED_NOW] >= 0:"),
    ("vllm_v1.py", "if r.limits.lone_request_uncapped and alive <= 1:", "if alive <= 1:"),
    ("vllm_v1.py", "alive <= 1:", "alive <= 2:"),
    ("vllm_v1.py", "threshold = max(threshold, r.limits.max_num_batched_tokens // alive)", "threshold = threshold"),
    ("vllm_v1.py", "computed + 2 - placeholders >=", "computed + 1 - placeholders >="),
    ("vllm_v1.py", "due = progress.known + placeholders - computed", "due = progress.known - computed"),
    ("vllm_v1.py", "            budget += refund\n", ""),
    ("vllm_v1.py", "            if place < i and (refund > 0 or r.limits.passed_over_counts):\n                i -= 1\n", ""),
    ("vllm_v1.py", "if place < i and (refund > 0 or r.limits.passed_over_counts):", "if refund > 0:"),
    ("vllm_v1.py", "if r.limits.adaptive_long_prefill and threshold > 0 and alive > 0:", "if r.limits.adaptive_long_prefill and alive > 0:"),
    ("vllm_v1.py", "                    return budget\n                due = 0\n", "                    break\n                due = 0\n"),
    ("vllm_v1.py", "if r.limits.ordering == FCFS or not r.limits.serves_past_self_victim:", "if r.limits.ordering == FCFS:"),
    ("vllm_v1.py", "while budget > 0 and at[WAITING_COUNT] > 0 and at[RUNNING_COUNT] <", "while budget > 0 and at[WAITING_COUNT] > 0 and at[RUNNING_COUNT] <="),
    ("vllm_v1.py", "if not r.limits.chunked_prefill and due > budget:", "if due > budget:"),
    ("vllm_v1.py", "if not r.limits.chunked_prefill and due > budget:", "if not r.limits.chunked_prefill and due >= budget:"),
    ("vllm_v1.py", "progress[request].known - hit, budget)", "progress[request].known, budget)"),
    ("vllm_v1.py", "        give(r, row, request, due, hit)\n        budget -= due\n", "        give(r, row, request, due, hit)\n"),
    ("vllm_v1.py", "if not fits(r, request, hit + due, hits, idle):", "if not fits(r, request, due, hits, idle):"),
]  # fmt: skip

ACTIONS: list[Mutant] = [
    ("actions.py", "- progress[request].known - progress[request].placeholders", "- progress[request].known"),
    ("actions.py", "if samples > 0 and asynchronous(r):", "if asynchronous(r):"),
    ("actions.py", "if new * groups_of(r.limits) > r.pool.counts[FREE_BLOCKS]:", "if new * groups_of(r.limits) >= r.pool.counts[FREE_BLOCKS]:"),
    ("actions.py", "register_full_blocks(r, request, min(tokens, r.progress[request].known))", "register_full_blocks(r, request, tokens)"),
    ("actions.py", "if r.limits.reserve_full_isl:", "if not r.limits.reserve_full_isl:"),
    ("actions.py", "watermark = r.limits.watermark_blocks if r.at[RUNNING_COUNT] > 0 else 0", "watermark = r.limits.watermark_blocks"),
    ("actions.py", "watermark = r.limits.watermark_blocks if r.at[RUNNING_COUNT] > 0 else 0", "watermark = 0"),
    ("actions.py", "r.pool.counts[FREE_BLOCKS] - idle - watermark", "r.pool.counts[FREE_BLOCKS] - watermark"),
    ("actions.py", "(blocks - hits) * groups_of(limits) <=", "blocks * groups_of(limits) <="),
    ("actions.py", "(blocks - hits) * groups_of(limits) <=", "(blocks - hits) * groups_of(limits) <"),
    ("actions.py", "    progress[request].hashed = hits\n", ""),
    ("actions.py", "if more_urgent(r, victim, r.running[i]):", "if more_urgent(r, r.running[i], victim):"),
    ("actions.py", "victim = int(r.running[r.at[RUNNING_COUNT] - 1])", "victim = int(r.running[0])"),
    ("actions.py", "    r.progress[victim].placeholders = 0\n", ""),
    ("actions.py", "    enqueue(r, victim, True)\n", "    enqueue(r, victim, False)\n"),
    ("actions.py", "    release(r.limits, r.pool, r.progress, victim)\n", "    release(r.limits, r.pool, r.progress, victim)\n    r.progress[victim].known = r.requests[victim].prompt\n"),
    ("actions.py", "r.ledger[victim].redo_until = max(r.ledger[victim].redo_until, r.progress[victim].computed)", "r.ledger[victim].redo_until = 0"),
    ("actions.py", "            refund = int(r.entries[row, k].tokens)\n", "            refund = 0\n"),
    ("actions.py", "                r.entries[row, j].before = r.entries[row, j + 1].before\n", ""),
    ("actions.py", "if urgency(r, head(r)) < urgency(r, victim):", "if urgency(r, head(r)) <= urgency(r, victim):"),
]  # fmt: skip

QUEUE: list[Mutant] = [
    ("waiting.py", "if not more_urgent(r, heap[i], heap[parent]):", "if more_urgent(r, heap[i], heap[parent]):"),
    ("waiting.py", "if child + 1 < size and more_urgent(r, heap[child + 1], heap[child]):", "if child + 1 < size and more_urgent(r, heap[child], heap[child + 1]):"),
    ("waiting.py", "        _sift_down(r, at[WAITING_TAIL])\n", "        pass\n"),
    ("waiting.py", "    return status in (WAITING, PREEMPTED)", "    return status == WAITING"),
    ("waiting.py", "        if _waits(r, request):\n            return int(request)\n        _drop_head(r)\n", "        return int(request)\n"),
    ("waiting.py", "    _drop_head(r)\n    r.at[WAITING_COUNT] -= 1\n", "    _drop_head(r)\n"),
    ("waiting.py", '''it is met."""
    if r.limits.ordering == FAIR:
        r.tenants[r.requests[request].tenant].queued -= 1
    r.at[WAITING_COUNT] -= 1''', '''it is met."""
    if r.limits.ordering == FAIR:
        r.tenants[r.requests[request].tenant].queued -= 1'''),
    ("waiting.py", "        lift(r, tenant)\n", ""),
    ("ordering.py", "return ua < ub or (ua == ub and a < b)", "return ua < ub or (ua == ub and a > b)"),
    ("ordering.py", "return float(asked.priority)", "return -float(asked.priority)"),
    ("ordering.py", "return float(asked.predicted)", "return float(asked.prompt)"),
    ("ordering.py", "max(asked.predicted - generated, 0)", "max(asked.predicted, 0)"),
    ("ordering.py", "return float(asked.deadline_ns)", "return float(asked.arrival_ns)"),
    ("ordering.py", "    r.tenants[tenant].service += INPUT_WEIGHT * r.requests[request].prompt\n", "    r.tenants[tenant].service += INPUT_WEIGHT\n"),
    ("ordering.py", "least = min(least, r.tenants[other].service)", "least = max(least, r.tenants[other].service)"),
]  # fmt: skip

BLOCKS: list[Mutant] = [
    ("blocks.py", "    pool.blocks[first].before = block\n", ""),
    ("blocks.py", "    pool.blocks[0].before = block\n", ""),
    ("blocks.py", "    pool.blocks[pool.blocks[block].after].before = pool.blocks[block].before\n", ""),
    ("blocks.py", "    if pool.blocks[block].references == 0:\n        take_out(pool, block)\n    pool", "    pool"),
    ("blocks.py", "    pool.blocks[block].references += 1\n    pool", "    pool"),
    ("blocks.py", "            if pool.blocks[block].key != 0:\n                unregister(pool, block)\n", ""),
    ("blocks.py", "    for i in range(last - 1, first - 1, -1):\n", "    for i in range(first, last):\n"),
    ("blocks.py", "and (pool.blocks[block].key != 0 or not uncached_to_front)", "and (pool.blocks[block].key == 0 or not uncached_to_front)"),
    ("blocks.py", "                push_front(pool, block)\n", "                push_back(pool, block)\n"),
    ("blocks.py", "        if pool.blocks[block].references == 0 and (", "        if ("),
    ("blocks.py", "    progress[request].hashed = 0\n", ""),
    ("blocks.py", "    pool.free_slots[pool.counts[FREE_SLOTS]] = slot\n", ""),
    ("blocks.py", "        pool.counts[FREE_BLOCKS] -= count\n", ""),
    ("blocks.py", "        pool.counts[FREE_BLOCKS] += held\n", ""),
    ("blocks.py", "            name_own(pool, pool.table[r.progress[request].slot, index], block_key(r, request, index))\n", "            pass\n"),
    ("blocks.py", "        r.progress[request].held = 0\n        hold_new(", "        hold_new("),
    ("actions.py", "        name_blocks(r)  # it may find its own again\n", "        pass\n"),
    ("prefix.py", "range((progress[request].known - 1) // r.limits.block_size)", "range(progress[request].known // r.limits.block_size)"),
    ("prefix.py", "        if r.pool.blocks[block].references == 0:\n            idle += 1\n", "        idle += 1\n"),
    ("prefix.py", "        if block == 0:\n            break\n", "        if block == 0:\n            continue\n"),
    ("prefix.py", "    pool.blocks[last].twin = block\n", ""),
    ("prefix.py", "        pool.places[i].block = pool.blocks[block].twin\n", "        pass\n"),
    ("prefix.py", "        _close_gap(pool, i)\n", "        pool.places[i].key = 0\n"),
    ("prefix.py", "        _close_gap(pool, i)\n        pool.counts[DISTINCT_KEYS] -= 1\n", "        _close_gap(pool, i)\n"),
    ("prefix.py", "        pool.blocks[block].twin = 0\n        pool.counts[DISTINCT_KEYS] -= 1\n", "        pool.blocks[block].twin = 0\n"),
    ("prefix.py", "            r.pool.counts[DISTINCT_KEYS] -= 1\n", ""),
    ("prefix.py", "            register(r.pool, block, r.pool.blocks[block].key)\n", ""),
    ("prefix.py", "    progress.findable = 1\n", ""),
    ("prefix.py", "index >= r.requests[request].content_blocks and r.progress[request].findable == 0:", "r.progress[request].findable == 0:"),
    ("prefix.py", "index >= r.requests[request].content_blocks and progress[request].findable == 0:", "progress[request].findable == 0:"),
    ("actions.py", "    make_findable(r, victim)\n", ""),
    ("prefix.py", "while (index + 1) * size <= tokens:", "while index * size < tokens:"),
    ("prefix.py", "return -((int(request) << _POSITION_BITS) + index + 1)", "return -(index + 1)"),
]  # fmt: skip

WINDOWS: list[Mutant] = [
    ("windows.py", "group < limits.window_groups if limits.windows_first", "group < limits.window_groups if not limits.windows_first"),
    ("windows.py", "max(0, tokens - limits.window_tokens + 1)", "max(0, tokens - limits.window_tokens)"),
    ("windows.py", "max(0, tokens - limits.window_tokens + 1)", "max(0, tokens - limits.window_tokens + 2)"),
    ("windows.py", "tokens // limits.window_tokens * limits.window_tokens // limits.block_size", "tokens // limits.block_size"),
    ("windows.py", "min(blocks, limits.window_cap_blocks) if limits.window_cap_blocks > 0 else blocks", "blocks"),
    ("windows.py", "limits.window_groups * max(seen - hits, 0)", "max(seen - hits, 0)"),
    ("actions.py", "new * groups_of(r.limits) >", "new >"),
    ("actions.py", "(blocks - hits) * groups_of(limits) <=", "blocks - hits <="),
    ("actions.py", "            progress[request].unsettled += r.entries[row, k].tokens\n", "            progress[request].unsettled += 1\n"),
    ("blocks.py", "    if limits.frees_settled:\n", "    if not limits.frees_settled:\n"),
    ("blocks.py", "            pool.table[slot, i] = 0\n", "            pass\n"),
    ("blocks.py", "            to_front = True  #", "            pass  #"),
    ("blocks.py", "index >= blocks_behind(limits, hits * limits.block_size):", "index >= 0:"),
    ("prefix.py", "if block != 0 and (kept or not sees_window(limits, group)):", "if kept or not sees_window(limits, group):"),
    ("prefix.py", "if block != 0 and (kept or not sees_window(limits, group)):", "if block != 0:"),
    ("prefix.py", "        progress[request].junction = junction\n", ""),
    ("prefix.py", "most if limits.full_groups > 0 else 0", "most"),
    ("windows.py", "end = (prompt - 1) // limits.block_size", "end = prompt // limits.block_size"),
    ("windows.py", "        or junction - needed <= index < junction\n", ""),
    ("windows.py", "(every > 0 and index % every >= every - needed)", "(every > 0 and index % every >= every - 1)"),
    ("prefix.py", "(key - 1) * groups_of(limits) + group + 1", "key"),
    ("windows.py", "(limits.window_tokens - 2 + limits.block_size)", "(limits.window_tokens - 1 + limits.block_size)"),
    ("prefix.py", "        idle += _idle_of(limits, r.pool, block_key(r, request, index), index >= behind)\n", "        idle += _idle_of(limits, r.pool, block_key(r, request, index), True)\n"),
    ("prefix.py", "            if not _cached_in_all(limits, r.pool, block_key(r, request, index), True):\n                hits = index\n", "            pass\n"),
]  # fmt: skip

AFTER: list[Mutant] = [
    ("commit.py", "            if asynchronous(r):\n                progress.placeholders -= 1\n", ""),
    ("commit.py", "min(progress.computed - progress.placeholders, progress.known - 1)", "progress.computed - progress.placeholders"),
    ("commit.py", "(samples > 1 and limits.registers_accepted)", "samples > 1"),
    ("drafts.py", "r.progress[request].phase == DECODE:", "r.progress[request].known > r.progress[request].prompt:"),
    ("drafts.py", "        if r.progress[r.entries[row, k].request].phase != DECODE:\n            return due\n", "        pass\n"),
    ("drafts.py", "(limits.draft_padding != PAD_BEHIND_HIT or hit == 0)", "limits.draft_padding != PAD_BEHIND_HIT"),
    ("drafts.py", "if hit + whole + 1 > limits.max_model_len:", "if hit + whole > limits.max_model_len:"),
    ("drafts.py", "    return 0 if whole > budget else whole\n", "    return due if whole > budget else whole\n"),
    ("actions.py", "            progress[request].computed -= drafted\n", ""),
    ("commit.py", "or progress.known >= r.limits.max_model_len)", "or progress.known > r.limits.max_model_len)"),
    ("commit.py", "    if left:\n        _drop_ended(r)\n", "    if left:\n        pass\n"),
    ("commit.py", "min(progress.computed - progress.placeholders, progress.known - 1)", "progress.known"),
    ("commit.py", "    r.at[UNFINISHED] -= 1\n", "    r.at[UNFINISHED] -= status == FINISHED\n"),
    ("commit.py", "    else:\n        leave_queue(r, request)\n", ""),
    ("ledger.py", "    waited = host - ledger[request].since_host\n", "    waited = host\n"),
    ("ledger.py", "ledger[request].decode += decoded - skipped\n", "ledger[request].decode += decoded\n"),
    ("ledger.py", "        if r.progress[request].phase == REDO:\n            continue\n", ""),
    ("ledger.py", "            ledger.preempted += at[DEVICE_FREE] - ledger.redo_from\n", ""),
    ("ledger.py", "        if r.progress[request].phase == QUEUED:\n", "        if True:\n"),
    ("ledger.py", "            ledger[request].skipped -= batches[other].decode\n", "            pass\n"),
    ("ledger.py", "        elif phase == DECODE:\n            r.ledger[request].skipped += decode\n", "        elif phase == DECODE:\n            r.ledger[request].skipped += decode + extra\n"),
]  # fmt: skip

MUTANTS = [*VLLM_V1, *ACTIONS, *QUEUE, *BLOCKS, *WINDOWS, *AFTER]
