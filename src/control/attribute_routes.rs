//! The routes of attributes and metrics: `/v1/attributes`, `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::attributes::{self, ATTRIBUTES, AttributeError, BlockState, Codecs, Reading, Write};
use super::connection::Watch;
use super::error::ApiError;
use super::shared::{self, Shared};
use super::{api, body, metrics};
use crate::clock;
use crate::disk::{Disk, DiskChange};

/// Texts of attributes.
const TEXT: &str = "text/plain; charset=utf-8";

impl From<AttributeError> for ApiError {
    fn from(error: AttributeError) -> Self {
        let status = match error {
            AttributeError::Unknown(_) => StatusCode::NOT_FOUND,
            AttributeError::WriteOnly(_) | AttributeError::ReadOnly(_) => StatusCode::FORBIDDEN,
            AttributeError::NotSupported(..) => StatusCode::NOT_IMPLEMENTED,
            AttributeError::Fixed { .. } => StatusCode::CONFLICT,
            AttributeError::Invalid { .. }
            | AttributeError::Algorithm { .. }
            | AttributeError::Range { .. }
            | AttributeError::TooLong { .. } => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.errno(), error.to_string())
    }
}

fn view(disk: &Disk) -> attributes::View {
    attributes::View { size: disk.size(), codecs: codecs(disk), report: disk.report() }
}

fn codecs(disk: &Disk) -> Codecs {
    Codecs { primary: disk.codec(), secondaries: disk.secondaries() }
}

/// The name in a path.
fn name(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(name) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    Ok(name.chars().take(100).collect())
}

/// All attributes: zram's, under the kernel's names.
#[utoipa::path(
    get, path = "/v1/attributes", tag = "attributes",
    responses((status = 200, body = Vec<api::Attribute>))
)]
pub(super) async fn get_attributes() -> Json<Vec<api::Attribute>> {
    let attribute = |attribute: &attributes::Attribute| api::Attribute {
        name: attribute.name.into(),
        mode: attribute.mode.digits().into(),
        supported: attribute.missing.is_none(),
    };
    Json(ATTRIBUTES.iter().map(attribute).collect())
}

/// An attribute, as the kernel's file has it.
#[utoipa::path(
    get, path = "/v1/attributes/{name}", tag = "attributes",
    params(("name" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "Its text.", content_type = "text/plain", body = String),
        (status = 400, description = "The name is not a text.", body = api::Refusal),
        (status = 403, description = "It can only be written.", body = api::Refusal),
        (status = 404, description = "There is no such attribute.", body = api::Refusal),
        (status = 501, description = "A later version has it.", body = api::Refusal),
    )
)]
pub(super) async fn get_attribute(
    State(api): Shared,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let body = match attributes::read(&name(path)?, &view(&api.disk))? {
        Reading::Text(text) => Body::from(text),
        Reading::BlockState => Body::new(BlockState::new(api.disk.slots())),
    };
    Ok(([(CONTENT_TYPE, TEXT), (CACHE_CONTROL, "no-store")], body).into_response())
}

/// Writes an attribute, as `echo` does it to the kernel's file: the body is the text. The answer comes when what it
/// asks for is done.
#[utoipa::path(
    put, path = "/v1/attributes/{name}", tag = "attributes",
    params(("name" = String, Path, description = "Its name.")),
    request_body(content = Option<String>, content_type = "text/plain", description = "The text, a newline at its end or not. None is an empty text."),
    responses(
        (status = 204, description = "It is done."),
        (status = 400, description = "The text is not what the attribute takes.", body = api::Refusal),
        (status = 403, description = "It can only be read, or the disk.", body = api::Refusal),
        (status = 404, description = "There is no such attribute.", body = api::Refusal),
        (status = 408, description = "The body did not come in time.", body = api::Refusal),
        (status = 409, description = "It is fixed, a front end uses the disk, the disk has no room for one more algorithm, or a recompression is under way or was cancelled.", body = api::Refusal),
        (status = 413, description = "The body is too long.", body = api::Refusal),
        (status = 501, description = "A later version has it.", body = api::Refusal),
        (status = 503, description = "The daemon is about to end, or a reset failed.", body = api::Refusal),
    )
)]
pub(super) async fn put_attribute(
    State(api): Shared,
    Extension(watch): Extension<Arc<Watch>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let name = name(path)?;
    let text = String::from_utf8(body::bytes(request).await?)
        .map_err(|_| ApiError::invalid("the body must be a text in UTF-8"))?;
    let disk = &api.disk;
    match attributes::write(&name, &text, &codecs(disk))? {
        Write::Limit(bytes) => {
            disk.change(&DiskChange { mem_limit: Some(bytes), ..DiskChange::default() })?;
        }
        Write::Algorithm(codec) => {
            disk.change(&DiskChange { codec: Some(codec), ..DiskChange::default() })?;
        }
        Write::Secondary(priority, codec) => disk.set_secondary(priority, codec)?,
        Write::Recompress(wanted) => shared::recompress(disk, wanted, &watch).await?,
        Write::Idle(age) => shared::mark_idle(disk, age, &watch).await?,
        Write::ForgetMost => disk.forget_max(),
        Write::Compact => shared::compact(disk, &watch).await?,
        Write::Reset => shared::reset(disk, &watch).await?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// All figures for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "metrics",
    responses((status = 200, description = "Prometheus' text format, version 0.0.4.", content_type = "text/plain", body = String))
)]
pub(super) async fn get_metrics(State(api): Shared) -> Result<Response, ApiError> {
    let (disk, sessions) = (&api.disk, api.disk.sessions());
    let text = metrics::text(metrics::Scrape {
        disk: disk.name().to_string(),
        size: disk.size(),
        codec: disk.codec(),
        connected: sessions.now.is_some(),
        sessions_begun: sessions.begun,
        uptime: clock::since_start(),
        report: disk.report(),
    });
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE), (CACHE_CONTROL, "no-store")], text).into_response())
}
