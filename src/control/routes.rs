//! What each request does. The attributes of the handlers are the API's description (`openapi`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Json, Router};

use super::api;
use super::attribute_routes::{get_attribute, get_attributes, get_metrics, put_attribute};
use super::body;
use super::connection::Watch;
use super::error::ApiError;
use super::shared::{self, Api, Shared};
use super::stream::{LISTENERS, TooMany};
use super::view::{self, View};
use crate::codec::CodecSpec;
use crate::disk::{DiskChange, RateChange};

/// The description of the API. A test compares it with the code.
pub(super) const DESCRIPTION: &str = include_str!("../../docs/openapi.json");

type Answer<T> = Result<Json<T>, ApiError>;
type Number = Result<Path<String>, PathRejection>;

/// Declares the routes: a router, and for tests the list of what it serves.
macro_rules! routes {
    ($( $path:literal { $($method:ident $handler:ident),+ } )+) => {
        /// Each path with its methods.
        fn served() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<Api>>)> {
            [$( ($path, MethodRouter::new()$(.$method($handler))+) ),+].into_iter()
        }

        /// What the router serves: methods and paths.
        #[cfg(test)]
        pub(super) const ROUTES: &[(&str, &str)] = &[$( $( (stringify!($method), $path) ),+ ),+];
    };
}

routes! {
    "/v1/disk" { get get_disk, patch patch_disk }
    "/v1/disk/reset" { post reset_disk }
    "/v1/disk/compact" { post compact_disk }
    "/v1/jobs" { get get_jobs, delete cancel_jobs }
    "/v1/jobs/{id}" { get get_job, delete cancel_job }
    "/v1/events" { get get_events }
    "/v1/attributes" { get get_attributes }
    "/v1/attributes/{name}" { get get_attribute, put put_attribute }
    "/metrics" { get get_metrics }
    "/v1/layers" { get get_layers }
    "/v1/snapshots" { get get_snapshots }
    "/healthz" { get get_health }
    "/readyz" { get get_readiness }
    "/openapi.json" { get get_description }
}

/// The router of the API.
pub(super) fn router(api: Arc<Api>) -> Router {
    let router =
        served().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router.fallback(unknown_path).method_not_allowed_fallback(unknown_method).with_state(api)
}

async fn unknown_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    ApiError::missing(format!("there is no `{path}`: GET /openapi.json lists what there is"))
}

async fn unknown_method(method: Method) -> ApiError {
    let error = format!("{method} does nothing here: GET /openapi.json lists what there is");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "EOPNOTSUPP", error)
}

impl Api {
    fn view(&self) -> Json<api::Disk> {
        let ready = self.ready.load(Ordering::Relaxed);
        Json(View::of(&self.disk).disk(&self.disk, &self.about, ready))
    }
}

/// The disk and its daemon, with all figures.
#[utoipa::path(
    get, path = "/v1/disk", tag = "disk",
    responses((status = 200, body = api::Disk))
)]
pub(super) async fn get_disk(State(api): Shared) -> Json<api::Disk> {
    api.view()
}

/// Changes settings, all that are given or none.
#[utoipa::path(
    patch, path = "/v1/disk", tag = "disk", request_body = api::DiskPatch,
    responses(
        (status = 200, description = "They are changed.", body = api::Disk),
        (status = 400, description = "The body is not JSON, or has an unknown field or a value that is none. Or the disk would shrink, or has no room for its size.", body = api::Refusal),
        (status = 408, description = "The body did not come in time.", body = api::Refusal),
        (status = 409, description = "The disk has no room for one more algorithm.", body = api::Refusal),
        (status = 413, description = "The body is too long.", body = api::Refusal),
        (status = 415, description = "The body is of another type than JSON.", body = api::Refusal),
        (status = 503, description = "The daemon is about to end, or the host does not have what a growth needs.", body = api::Refusal),
    )
)]
pub(super) async fn patch_disk(State(api): Shared, request: Request) -> Answer<api::Disk> {
    let patch: api::DiskPatch = body::json(request).await?;
    api.disk.change(&change(patch)?)?;
    Ok(api.view())
}

/// What a client wants to be changed.
fn change(patch: api::DiskPatch) -> Result<DiskChange, ApiError> {
    let api::DiskPatch { size_bytes, mem_limit_bytes, host_reserve_bytes, algorithm, rates } =
        patch;
    let codec = algorithm.map(|text| text.parse::<CodecSpec>()).transpose();
    let api::RatesPatch { read, write } = rates.unwrap_or_default();
    let rate = |patch: Option<api::RatePatch>| {
        let patch = patch.unwrap_or_default();
        let api::RatePatch { operations_per_second, bytes_per_second, burst_ms } = patch;
        RateChange { operations_per_second, bytes_per_second, burst_ms }
    };
    Ok(DiskChange {
        size: size_bytes,
        codec: codec.map_err(|error| ApiError::invalid(error.to_string()))?,
        mem_limit: mem_limit_bytes,
        host_reserve: host_reserve_bytes,
        read_rate: rate(read),
        write_rate: rate(write),
    })
}

/// Makes the disk blank: frees all pages, has the figures begin anew, and gives the settings the values of the
/// start. Front ends that connect meanwhile wait.
#[utoipa::path(
    post, path = "/v1/disk/reset", tag = "disk",
    responses(
        (status = 200, description = "The disk is blank.", body = api::Disk),
        (status = 403, description = "The disk is read-only.", body = api::Refusal),
        (status = 409, description = "A front end uses the disk, or it is being loaded or reset.", body = api::Refusal),
        (status = 503, description = "The daemon is about to end, or the reset failed.", body = api::Refusal),
    )
)]
pub(super) async fn reset_disk(
    State(api): Shared,
    Extension(watch): Extension<Arc<Watch>>,
) -> Answer<api::Disk> {
    shared::reset(&api.disk, &watch).await?;
    Ok(api.view())
}

/// Gives memory back to the host: objects are moved out of sparse pages. A compaction that waits already is
/// the answer to this request, too.
#[utoipa::path(
    post, path = "/v1/disk/compact", tag = "disk",
    responses(
        (status = 202, description = "The job, which begins soon.", body = api::Job),
        (status = 503, description = "The daemon is about to end.", body = api::Refusal),
    )
)]
pub(super) async fn compact_disk(
    State(api): Shared,
) -> Result<(StatusCode, Json<api::Job>), ApiError> {
    let id = api.disk.compact(|_| ()).ok_or_else(ApiError::ending)?;
    let job = api.disk.jobs().get(id).ok_or_else(|| no_job(&id.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(view::job(&job))))
}

/// The jobs that are not over, and the last ones that are, oldest first.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs",
    responses((status = 200, body = Vec<api::Job>))
)]
pub(super) async fn get_jobs(State(api): Shared) -> Json<Vec<api::Job>> {
    Json(api.disk.jobs().list().iter().map(view::job).collect())
}

/// Cancels all jobs, and forgets those that are over. Returns all that there were.
#[utoipa::path(
    delete, path = "/v1/jobs", tag = "jobs",
    responses((status = 200, body = Vec<api::Job>))
)]
pub(super) async fn cancel_jobs(State(api): Shared) -> Json<Vec<api::Job>> {
    let jobs = api.disk.jobs();
    let each = jobs.list().into_iter().filter_map(|job| jobs.cancel(job.id));
    Json(each.map(|job| view::job(&job)).collect())
}

/// A job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = u64, Path, description = "Its number.")),
    responses(
        (status = 200, body = api::Job),
        (status = 404, description = "There is no such job.", body = api::Refusal),
    )
)]
pub(super) async fn get_job(State(api): Shared, number: Number) -> Answer<api::Job> {
    let (id, text) = job_number(number)?;
    let job = id.and_then(|id| api.disk.jobs().get(id));
    Ok(Json(view::job(&job.ok_or_else(|| no_job(&text))?)))
}

/// Cancels a job, which ends soon. One that is over is forgotten.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = u64, Path, description = "Its number.")),
    responses(
        (status = 200, description = "The job as it was.", body = api::Job),
        (status = 404, description = "There is no such job.", body = api::Refusal),
    )
)]
pub(super) async fn cancel_job(State(api): Shared, number: Number) -> Answer<api::Job> {
    let (id, text) = job_number(number)?;
    let job = id.and_then(|id| api.disk.jobs().cancel(id));
    Ok(Json(view::job(&job.ok_or_else(|| no_job(&text))?)))
}

/// The number in a path, if it is one, and its text.
fn job_number(number: Number) -> Result<(Option<u64>, String), ApiError> {
    let Path(text) = number.map_err(|error| ApiError::invalid(error.body_text()))?;
    Ok((text.parse().ok(), text.chars().take(100).collect()))
}

fn no_job(text: &str) -> ApiError {
    ApiError::missing(format!("there is no job `{text}`: GET /v1/jobs lists all"))
}

/// What happens, as server-sent events: sessions, limits that come near, refusals, stalls, jobs. The name of each
/// is its kind, and its data an `Event`. A client that reads too slowly loses events, and is told how many.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    responses(
        (status = 200, description = "A stream that ends with the daemon.", content_type = "text/event-stream", body = api::Event),
        (status = 503, description = "As many clients listen as can.", body = api::Refusal),
    )
)]
pub(super) async fn get_events(
    State(api): Shared,
    Extension(watch): Extension<Arc<Watch>>,
) -> Result<Response, ApiError> {
    let body = api.stream.listen().map_err(|TooMany| {
        let error = format!("{LISTENERS} clients listen, which is the most: end one of them");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "EBUSY", error)
    })?;
    watch.listens();
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

/// Reserved for sealed layers.
#[utoipa::path(
    get, path = "/v1/layers", tag = "reserved",
    responses((status = 501, description = "A later version has it.", body = api::Refusal))
)]
pub(super) async fn get_layers() -> ApiError {
    ApiError::not_supported("/v1/layers is reserved for a later version")
}

/// Reserved for snapshots.
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "reserved",
    responses((status = 501, description = "A later version has it.", body = api::Refusal))
)]
pub(super) async fn get_snapshots() -> ApiError {
    ApiError::not_supported("/v1/snapshots is reserved for a later version")
}

/// Whether the daemon lives.
#[utoipa::path(
    get, path = "/healthz", tag = "daemon",
    responses((status = 200, body = api::Health))
)]
pub(super) async fn get_health() -> Json<api::Health> {
    Json(api::Health { status: "ok".into() })
}

/// Whether front ends can connect.
#[utoipa::path(
    get, path = "/readyz", tag = "daemon",
    responses(
        (status = 200, body = api::Health),
        (status = 503, description = "The disk is being loaded.", body = api::Refusal),
    )
)]
pub(super) async fn get_readiness(State(api): Shared) -> Answer<api::Health> {
    if api.ready.load(Ordering::Relaxed) {
        return Ok(get_health().await);
    }
    let error = "front ends cannot connect yet: the disk is being loaded";
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "EAGAIN", error))
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "daemon",
    responses((status = 200, description = "OpenAPI 3.1.", content_type = "application/json"))
)]
pub(super) async fn get_description() -> Response {
    ([(CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}
