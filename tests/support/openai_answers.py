"""OpenAI's answers under their first name; they live in `tests.support.vendors.openai`."""

from tests.support.vendors.openai import *  # noqa: F403
