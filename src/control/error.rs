//! Requests that are refused: a status of HTTP, an error number by its name, and a sentence that says what
//! to do.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::api::Refusal;
use crate::causes::with_causes;
use crate::disk::{
    AgeError, ChangeError, GrowError, RecompressError, RecompressRefused, ResetError,
};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    errno: &'static str,
    error: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, errno: &'static str, error: impl Into<String>) -> Self {
        Self { status, errno, error: error.into() }
    }

    /// The request makes no sense.
    pub(super) fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "EINVAL", error)
    }

    /// What is asked for is not there.
    pub(super) fn missing(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "ENOENT", error)
    }

    /// It cannot be done now.
    pub(super) fn busy(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "EBUSY", error)
    }

    /// This version does not do it.
    pub(super) fn not_supported(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "ENOTSUP", error)
    }

    /// The daemon is about to end.
    pub(super) fn ending() -> Self {
        let error = "the daemon is about to end: ask the next one";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ESHUTDOWN", error)
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Codec(..) => {
                Self::new(StatusCode::CONFLICT, "ENOSPC", with_causes(&error))
            }
            ChangeError::Burst(_) => Self::invalid(error.to_string()),
            ChangeError::Size(GrowError::Shrink { .. } | GrowError::Room { .. }) => {
                Self::invalid(error.to_string())
            }
            ChangeError::Size(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ENOMEM", with_causes(&error))
            }
            ChangeError::Ending => Self::ending(),
        }
    }
}

impl From<RecompressRefused> for ApiError {
    fn from(error: RecompressRefused) -> Self {
        let text = with_causes(&error);
        match error {
            RecompressRefused::Busy(_) => Self::new(StatusCode::CONFLICT, "EAGAIN", text),
            RecompressRefused::Ending => Self::ending(),
            RecompressRefused::Thread(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "EAGAIN", text)
            }
        }
    }
}

impl From<RecompressError> for ApiError {
    fn from(error: RecompressError) -> Self {
        let text = with_causes(&error);
        match error {
            RecompressError::NoAlgorithm(_) => Self::invalid(text),
            RecompressError::Context(_) | RecompressError::Memory(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ENOMEM", text)
            }
        }
    }
}

impl From<AgeError> for ApiError {
    fn from(error: AgeError) -> Self {
        match error {
            AgeError::NotKept => Self::invalid(error.to_string()),
            AgeError::TooOld { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "ERANGE", error.to_string())
            }
        }
    }
}

impl From<ResetError> for ApiError {
    fn from(error: ResetError) -> Self {
        let text = with_causes(&error);
        match error {
            ResetError::Loading | ResetError::InUse(_) | ResetError::Twice => Self::busy(text),
            ResetError::ReadOnly => Self::new(StatusCode::FORBIDDEN, "EROFS", text),
            ResetError::Ending => Self::ending(),
            ResetError::Failed(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "EIO", text),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, errno, error } = self;
        (status, Json(Refusal { errno: errno.into(), error })).into_response()
    }
}
