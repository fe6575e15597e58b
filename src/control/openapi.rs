//! The description of the API, which is made from the handlers and the types. It is compared with
//! `docs/openapi.json`, which the daemon serves, and with the router.

use std::collections::BTreeSet;

use utoipa::OpenApi;

use super::{api, attribute_routes, routes};

/// The description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "vhost-user-zram",
        description = "The control API of a daemon, on the Unix socket of its option --api-socket. Errors are JSON with the name of an error number and a sentence that says what to do.",
        license(name = "Apache-2.0 OR BSD-3-Clause"),
    ),
    paths(
        routes::get_disk,
        routes::patch_disk,
        routes::reset_disk,
        routes::compact_disk,
        routes::get_jobs,
        routes::cancel_jobs,
        routes::get_job,
        routes::cancel_job,
        attribute_routes::get_attributes,
        attribute_routes::get_attribute,
        attribute_routes::put_attribute,
        attribute_routes::get_metrics,
        routes::get_events,
        routes::get_layers,
        routes::get_snapshots,
        routes::get_health,
        routes::get_readiness,
        routes::get_description,
    ),
    components(schemas(api::Event, api::Refusal))
)]
struct Description;

fn generated() -> String {
    let mut text = Description::openapi().to_pretty_json().expect("JSON");
    text.push('\n');
    text
}

/// `VUZ_UPDATE=1` writes it.
#[test]
fn the_committed_description_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    let made = generated();
    if std::env::var_os("VUZ_UPDATE").is_some() {
        std::fs::write(path, &made).expect("write");
    }
    let committed = std::fs::read_to_string(path).expect("docs/openapi.json");
    assert!(
        committed == made,
        "docs/openapi.json is not that of the code: VUZ_UPDATE=1 cargo test --lib openapi"
    );
    assert!(committed.contains("\"openapi\": \"3.1.0\""), "the version");
}

#[test]
fn the_description_has_the_routes_that_are_served() {
    let document: serde_json::Value = serde_json::from_str(&generated()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let described: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods");
            methods.keys().map(|method| (method.clone(), path.clone()))
        })
        .collect();
    let owned = |(method, path): &(&str, &str)| (method.to_string(), path.to_string());
    let served: BTreeSet<(String, String)> = routes::ROUTES.iter().map(owned).collect();
    assert_eq!(described, served);
}

/// A client knows what it gets of each answer, and each refusal is of one form.
#[test]
fn each_answer_says_what_it_is() {
    let document: serde_json::Value = serde_json::from_str(&generated()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    for (path, method, operation) in paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods");
        methods.iter().map(move |(method, operation)| (path, method, operation))
    }) {
        assert!(operation["summary"].is_string(), "{method} {path}");
        for (status, answer) in operation["responses"].as_object().expect("answers") {
            if status == "204" {
                assert!(answer["content"].is_null(), "{method} {path} {status}");
                continue;
            }
            let content = answer["content"].as_object().expect("content");
            if status.starts_with('2') {
                assert_eq!(content.len(), 1, "{method} {path} {status}");
            } else {
                let schema = &content["application/json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Refusal", "{method} {path} {status}");
            }
        }
    }
}
