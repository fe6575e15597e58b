//! The JSON that comes with a request: of the right type, not too long, and there in time.

use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::object::Object;

/// Most bytes of a body.
pub(super) const MOST: usize = 64 << 10;
/// Longest time until all of it is there.
const TIME: Duration = Duration::from_secs(10);

/// Types that JSON comes as.
const TYPES: [&str; 2] = ["application/json", "application/merge-patch+json"];

/// What the body of a request says.
///
/// # Errors
/// It is not JSON or not of this form, it is too long, or it does not come.
pub(super) async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "EINVAL",
            "the body must be JSON: send it with `Content-Type: application/json`",
        ));
    }
    let bytes = bytes(request).await?;
    serde_json::from_slice(&bytes)
        .map(|Object(value)| value)
        .map_err(|error| ApiError::invalid(format!("the body is not what is needed: {error}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).unwrap_or_default();
    TYPES.iter().any(|known| essence.trim().eq_ignore_ascii_case(known))
}

/// The length that a request says it has.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The bytes of the body of a request.
///
/// # Errors
/// It is too long, or does not come.
pub(super) async fn bytes(request: Request) -> Result<Vec<u8>, ApiError> {
    let too_long = || {
        let error = format!("the body is longer than {MOST} bytes: send a shorter one");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "EFBIG", error)
    };
    if length(request.headers()).is_some_and(|length| length > MOST as u64) {
        return Err(too_long());
    }
    let body = Limited::new(request.into_body(), MOST);
    match tokio::time::timeout(TIME, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => Err(ApiError::invalid("the body ends too early, or its form is wrong")),
        Err(_) => {
            let error = format!("the body did not come within {} s: send it again", TIME.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "ETIMEDOUT", error))
        }
    }
}
