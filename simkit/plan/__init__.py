"""Answers to planners' questions: how much load holds, and how sure that is."""
