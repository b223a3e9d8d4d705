//! One route table a service and role, shared by all workers: two workers must not learn
//! different names for one path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use globset::{Glob, GlobMatcher};
use protocol::observation::{ElasticsearchCall, Role};
use protocol::routes::RouteTable;

use crate::config::RoutesConfig;

/// Most route tables: services times roles. Further services share one table.
const MAX_TABLES: usize = 4096;

/// The name of the table that services beyond [`MAX_TABLES`] share.
const SHARED: &str = "";

/// Route tables by service and role.
#[derive(Debug)]
pub struct Routes {
    templates: Vec<(GlobMatcher, Vec<String>)>,
    max_per_service: usize,
    tables: Mutex<HashMap<(Arc<str>, Role), ServiceRoutes>>,
}

/// The table of one service and role; clones share it.
#[derive(Clone, Debug)]
pub struct ServiceRoutes {
    table: Arc<Mutex<RouteTable>>,
}

/// A template or a service pattern of the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// A service pattern.
    #[error("routes.templates: {0}")]
    Service(#[from] globset::Error),
    /// A template.
    #[error("routes.templates.{service}: {source}")]
    Template {
        /// The pattern under which it stands.
        service: String,
        /// What is wrong with it.
        source: protocol::routes::TemplateError,
    },
}

impl Routes {
    /// Prepares the templates of a configuration.
    ///
    /// # Errors
    /// A template or pattern that is none.
    pub fn new(config: &RoutesConfig) -> Result<Self, RoutesError> {
        let mut templates = Vec::with_capacity(config.templates.len());
        for (service, list) in &config.templates {
            RouteTable::new(list, config.max_per_service).map_err(|source| {
                RoutesError::Template {
                    service: service.clone(),
                    source,
                }
            })?;
            templates.push((Glob::new(service)?.compile_matcher(), list.clone()));
        }
        Ok(Self {
            templates,
            max_per_service: config.max_per_service,
            tables: Mutex::default(),
        })
    }

    /// The table of a service in a role.
    pub fn of(&self, service: &Arc<str>, role: Role) -> ServiceRoutes {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::clone(service), role);
        if let Some(routes) = tables.get(&key) {
            return routes.clone();
        }
        let key = if tables.len() < MAX_TABLES {
            key
        } else {
            (Arc::from(SHARED), role)
        };
        tables
            .entry(key)
            .or_insert_with(|| self.table(service))
            .clone()
    }

    fn table(&self, service: &str) -> ServiceRoutes {
        let templates: Vec<String> = self
            .templates
            .iter()
            .filter(|(pattern, _)| pattern.is_match(service))
            .flat_map(|(_, list)| list.iter().cloned())
            .collect();
        let table = RouteTable::new(&templates, self.max_per_service)
            .expect("every template was accepted in Routes::new");
        ServiceRoutes {
            table: Arc::new(Mutex::new(table)),
        }
    }
}

impl ServiceRoutes {
    /// The route of a path.
    #[must_use]
    pub fn route(&self, path: &str) -> Arc<str> {
        self.lock().route(path)
    }

    /// The route of a call: where the configuration gives none, the API's own template is better than
    /// anything that could be learned.
    #[must_use]
    pub fn route_of_call(&self, path: &str, call: &ElasticsearchCall) -> Arc<str> {
        let Some(template) = call.template else {
            return self.route(path);
        };
        let given = self.lock().given(path);
        given.unwrap_or_else(|| format!("{}{template}", call.prefix).into())
    }

    fn lock(&self) -> MutexGuard<'_, RouteTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
