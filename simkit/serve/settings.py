"""How the endpoint is started."""

from pydantic import BaseModel, ConfigDict, Field


class ServeSettings(BaseModel):
    """Everything but the deployment itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="0.0.0.0 lets other machines in; there is no authentication")
    port: int = Field(default=8000, ge=0, le=65535)
    time_scale: float = Field(
        default=1.0, gt=0, le=1000, allow_inf_nan=False, description="10: ten times as fast as real"
    )
    model_name: str | None = Field(default=None, description="the name clients use; default the deployment's")
    answer_tokens: int | None = Field(
        default=None, ge=1, description="answers end by themselves after so many tokens; default they run to max_tokens"
    )
    max_body_bytes: int = Field(default=32 << 20, ge=1)
